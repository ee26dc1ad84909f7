"""Routing that is forced, and the rounds that it takes."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.models import mixtures, vit
from softmoe.moe import experts, forced, layer, mlp, routing
from softmoe.moe.routers import tokens_choice

P = jax.P
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
WIDTH, EXPERTS = 6, 8


def assignment(choices):
  zeros = jnp.zeros((3, 8, EXPERTS))
  return routing.Assignment(zeros, zeros, choices=choices)


@pytest.mark.parametrize('choices', [1, 2, 3, None])
def test_even_wants_every_expert_equally_often(choices):
  wanted = forced.force(assignment(choices), 'even', None).wanted()
  assert (jnp.sum(wanted, axis=2) == (choices or 2)).all()
  assert (jnp.sum(wanted, axis=(0, 1)) == 3 * (choices or 2)).all()


def test_one_wants_the_same_experts_but_for_padding():
  mask = jnp.ones((3, 8), bool).at[1, 5:].set(False)
  wanted = forced.force(assignment(2), 'one', mask).wanted()
  first = np.arange(EXPERTS) < 2
  assert (wanted == np.asarray(mask)[..., None] & first).all()


def make(implementation, **options):
  return layer.MoE(
    tokens_choice.TokensChoice(
      WIDTH, EXPERTS, k=2, capacity_factor=None, rngs=nnx.Rngs(0)
    ),
    experts.Experts(
      lambda rngs: mlp.Mlp(WIDTH, 7, rngs=rngs), EXPERTS, rngs=nnx.Rngs(1)
    ),
    implementation=implementation,
    **options,
  )


def run(mesh_sizes, mesh, implementation, **options):
  mesh(*mesh_sizes)
  x = np.random.default_rng(0).normal(size=(8, 8, WIDTH)).astype(np.float32)
  x = jax.device_put(x, P(('data', 'expert')))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def call(x):
    y, aux = make(implementation, **options)(x)
    return y, aux['metrics']

  return call(x)


@pytest.mark.parametrize(
  'kind, factor, rounds',
  # All rows of 4 devices for one, which has room for 1.25 of 4 shares and then
  # for half as many; or a share for each, which has room for half of it.
  [
    pytest.param('one', 1.25, 6, marks=pytest.mark.slow),
    ('even', 0.5, 3),
  ],
)
def test_rounds_of_the_fullest_device(mesh, kind, factor, rounds):
  options = dict(forced_routing=kind, buffer_factor=factor)
  y, metrics = run((2, 4), mesh, 'grouped', **options)
  assert metrics['rounds'] == rounds
  expected, others = run((2, 4), mesh, 'fused', forced_routing=kind)
  assert 'rounds' not in others
  np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('forced_routing', 'two', "one of \\('', 'even', 'one'\\)"),
    ('buffer_factor', 0.0, 'above 0'),
  ],
)
def test_wrong_arguments(field, value, message):
  with pytest.raises(UserError, match=f'{field}: got {value!r}; {message}'):
    make('auto', **{field: value})


def test_slots_are_never_forced():
  moe = model_config.MoEConfig(num_experts=2, forced_routing='one')
  config = vit.ViTConfig(width=8, mlp_dim=8, moe=moe)
  with pytest.raises(UserError, match='forced_routing'):
    nnx.eval_shape(lambda: mixtures.make_moe(config, nnx.Rngs(0)))
