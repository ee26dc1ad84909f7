"""Arguments of the layer that do not fit are named."""

import pytest
from flax import nnx

from softmoe.moe import experts, layer, mlp
from softmoe.moe.routers import hashing

WIDTH, EXPERTS, HIDDEN, VOCABULARY = 6, 4, 7, 9


def plain(num_experts=EXPERTS, **options):
  expert = lambda rngs: mlp.Mlp(WIDTH, HIDDEN, rngs=rngs)
  return nnx.eval_shape(
    lambda: layer.MoE(
      hashing.HashRouter(EXPERTS, VOCABULARY),
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
