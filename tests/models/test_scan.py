"""Scan over blocks and rematerialisation change no number."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.models import blocks, stack, vit
from softmoe.models import config as model_config

# Runs of one plain and two MoE blocks.
MOE = model_config.MoEConfig(blocks=(1, 2), num_experts=3, slots_per_expert=2)
CONFIG = vit.ViTConfig(
  patch_size=(4, 4),
  width=16,
  depth=3,
  mlp_dim=16,
  num_heads=2,
  dropout=0.2,
  drop_path=0.3,
  moe=MOE,
)


def make(config):
  return vit.ViT(
    config, image_size=(8, 8), channels=1, num_classes=5, rngs=nnx.Rngs(0)
  )


def graphdef_of(config):
  return nnx.graphdef(nnx.eval_shape(lambda: make(config)))


def draw_images():
  return jax.random.normal(jax.random.key(1), (4, 8, 8, 1))


def stack_of(params):
  """Returns the parameters of CONFIG in the form of the scanned model."""
  scanned = dataclasses.replace(CONFIG, scan=True)
  return params | {'blocks': stack.stack(params['blocks'], scanned)}


class Tiny(blocks.Block):
  """Stands in for a block: making real ones takes long."""

  def __init__(self, config, *, moe, cross, rngs):
    del config, cross
    self.weight = nnx.Param(jax.random.normal(rngs.params(), (2 + moe,)))


def test_same_start(monkeypatch):
  monkeypatch.setattr(blocks, 'Block', Tiny)
  weights = lambda made: [np.asarray(block.weight[...]) for block in made]
  plain = weights(stack.make_blocks(CONFIG, nnx.Rngs(0)))
  assert plain[1][0] != plain[2][0]
  config = dataclasses.replace(CONFIG, scan=True)
  first, run = weights(stack.make_blocks(config, nnx.Rngs(0)))
  np.testing.assert_array_equal(first, plain[:1])
  np.testing.assert_array_equal(run, plain[1:])


def outcome(config, params):
  """Returns logits and metrics, and gradients."""
  graphdef = graphdef_of(config)

  def loss(params):
    model = nnx.merge(graphdef, params)
    logits, aux = model(draw_images(), jax.random.key(2))
    return jnp.sum(jnp.square(logits)), (logits, aux)

  gradients, result = jax.jit(jax.grad(loss, has_aux=True))(params)
  return result, gradients


@pytest.fixture(scope='module')
def plain():
  """Returns parameters of which none is special, and what CONFIG does."""
  abstract = nnx.eval_shape(lambda: make(CONFIG))
  rng = np.random.default_rng(0)
  draw = lambda w: jnp.asarray(0.4 * rng.normal(size=w.shape) + 0.1, w.dtype)
  params = jax.tree.map(draw, nnx.to_pure_dict(nnx.state(abstract)))
  return params, outcome(CONFIG, params)


@pytest.mark.parametrize(
  ('scan', 'remat'),
  [
    (True, False),
    pytest.param(False, True, marks=pytest.mark.slow),
    pytest.param(True, True, marks=pytest.mark.slow),
  ],
)
def test_same_logits_metrics_and_gradients_with_dropout(plain, scan, remat):
  params, (result, gradients) = plain
  if scan:
    params, gradients = stack_of(params), stack_of(gradients)
  config = dataclasses.replace(CONFIG, scan=scan, remat=remat)
  actual_result, actual_gradients = outcome(config, params)
  close = lambda tolerance: (
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    )
  )
  jax.tree.map(close(2e-6), actual_result, result)
  jax.tree.map(close(1e-5), actual_gradients, gradients)


@pytest.mark.slow
def test_key_matters_in_training_and_evaluation_has_none(plain):
  params = stack_of(plain[0])
  config = dataclasses.replace(CONFIG, scan=True)
  still = dataclasses.replace(config, dropout=0.0, drop_path=0.0)
  apply = jax.jit(
    lambda graphdef, key: nnx.merge(graphdef, params)(draw_images(), key)[0],
    static_argnums=0,
  )
  graphdef = graphdef_of(config)
  train = apply(graphdef, jax.random.key(2))
  np.testing.assert_array_equal(apply(graphdef, jax.random.key(2)), train)
  assert np.all(apply(graphdef, jax.random.key(3)) != train)
  expected = apply(graphdef_of(still), None)
  np.testing.assert_allclose(apply(graphdef, None), expected, rtol=1e-6)
  assert np.all(expected != train)
