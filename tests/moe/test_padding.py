"""Losses and metrics are those of the tokens: padding adds nothing to them."""

import jax
import numpy as np
import pytest
from flax import nnx

from softmoe.models import config as model_config
from softmoe.models import mixtures, vit

BALANCED = (('importance', 0.3), ('switch', 0.2), ('z', 0.1))
CASES = {
  'soft': dict(slots_per_expert=2),
  'mixture_of_tokens': dict(),
  'tokens_choice': dict(k=2, capacity_factor=1.0, losses=BALANCED),
  'threshold': dict(threshold=0.6, balance=0.5),
  'bias_balanced': dict(k=2),
  'quantile_balanced': dict(k=2),
  'expert_threshold': dict(k=2),
  'relu': dict(k=2),
}
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
EXAMPLES, TOKENS, REAL, GROUP = 16, 5, 4, 2


def aux_of(router, x, mask=None, place=lambda v: v):
  """Returns losses and metrics of a layer with this router."""
  moe = model_config.MoEConfig(
    router=router, num_experts=4, group_size=GROUP, **CASES[router]
  )
  config = vit.ViTConfig(width=6, mlp_dim=8, moe=moe)
  module = mixtures.make_moe(config, nnx.Rngs(0))
  run = jax.jit(
    lambda module, *tokens: module(*tokens)[1], compiler_options=QUICK
  )
  return run(module, *jax.tree.map(place, (x, mask)))


def tokens():
  rng = np.random.default_rng(0)
  return rng.normal(size=(EXAMPLES, TOKENS, 6)).astype(np.float32)


def without_what_ran(aux):
  metrics = dict(aux['metrics'])
  for name in ('executed', 'flops'):
    metrics.pop(name)
  return aux['losses'], metrics


def assert_same(actual, expected):
  same = lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-7)
  jax.tree.map(same, without_what_ran(actual), without_what_ran(expected))


@pytest.mark.parametrize('router', CASES)
@pytest.mark.parametrize('sizes', [None, (2, 4)], ids=str)
def test_groups_of_nothing_but_padding_do_not_count(mesh, sizes, router):
  """Under the mesh most of the devices hold no token at all."""
  x = tokens()
  expected = aux_of(router, x[:REAL])
  mask = np.zeros(x.shape[:2], bool)
  mask[:REAL] = True
  place = lambda v: v
  if sizes:
    mesh(*sizes)
    place = lambda v: jax.device_put(v, jax.P('data'))
  assert_same(aux_of(router, x, mask, place), expected)


def test_tokens_that_are_padding_do_not_count():
  x = tokens()
  padded = np.concatenate([x, 9 * x], axis=1)
  mask = np.zeros(padded.shape[:2], bool)
  mask[:, :TOKENS] = True
  assert_same(aux_of('soft', padded, mask), aux_of('soft', x))


def test_fewer_tokens_than_devices_are_counted_as_they_are(mesh):
  mesh(2, 4)
  mask = np.arange(EXAMPLES)[:, None] < REAL
  aux = aux_of('bias_balanced', tokens()[:, :1], mask)
  assert aux['metrics']['wanted'] == 2


def test_nothing_but_padding_has_no_losses_or_metrics():
  x = tokens()
  aux = aux_of('threshold', x, np.zeros(x.shape[:2], bool))
  assert set(map(float, jax.tree.leaves(aux))) == {0.0}
