"""Arguments of the layer that do not fit are named."""

import jax
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.moe import experts, layer, mlp
from softmoe.moe.routers import hashing, segment_soft, threshold

WIDTH, EXPERTS, HIDDEN, VOCABULARY = 6, 4, 7, 9
ROUTERS = {
  'hash': lambda: hashing.HashRouter(EXPERTS, VOCABULARY),
  'segment': lambda: segment_soft.SegmentSoft(
    WIDTH, EXPERTS, segment=2, rngs=nnx.Rngs(0)
  ),
  'threshold': lambda: threshold.Threshold(WIDTH, EXPERTS, rngs=nnx.Rngs(0)),
}


@pytest.fixture
def as_elsewhere():
  """Lets nothing check shapes and types before the layer does."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


def plain(num_experts=EXPERTS, router='hash', **options):
  expert = lambda rngs: mlp.Mlp(WIDTH, HIDDEN, rngs=rngs)
  return nnx.eval_shape(
    lambda: layer.MoE(
      ROUTERS[router](),
      experts.Experts(expert, num_experts, rngs=nnx.Rngs(0)),
      **options,
    )
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(num_experts=3), 'experts: got 3; 4, as many as the router knows'),
    (dict(group_size=0), 'group_size: got 0; at least 1'),
    (dict(implementation='fast'), "implementation: got 'fast'; one of"),
  ],
)
def test_bad_arguments_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    plain(**options)


@pytest.mark.parametrize(
  ('router', 'field', 'given', 'message'),
  [
    (
      'hash',
      'mask',
      jnp.ones(3, bool),
      r"'bool \(3,\)'; bool \(2, 3\), one for",
    ),
    (
      'hash',
      'token_ids',
      jnp.zeros((2, 3)),
      r"'float32 \(2, 3\)'; integer \(2",
    ),
    (
      'segment',
      'segments',
      jnp.zeros(2, int),
      r"'int32 \(2,\)'; integer \(2, 3",
    ),
  ],
)
def test_what_each_token_has_is_checked(
  as_elsewhere, router, field, given, message
):
  x = jnp.ones((2, 3, WIDTH))
  for call in ('__call__', 'route'):
    with pytest.raises(UserError, match=f'^{field}: got {message}'):
      getattr(plain(router=router), call)(x, **{field: given})


def test_masks_of_numbers_are_as_good(as_elsewhere):
  module = plain(router='threshold')
  weights = jax.tree.map(lambda w: jnp.ones(w.shape), nnx.state(module))
  module, x = nnx.merge(nnx.graphdef(module), weights), jnp.ones((2, 3, WIDTH))
  mask = jnp.array([[True, True, False], [True, False, False]])
  both = lambda module, x: [module.route(x, m) for m in (mask * 1.0, mask)]
  actual, expected = jax.jit(both)(module, x)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
