"""MoE layers out of dense MLPs: where they compute the same, and where not."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.config import UpcycleConfig
from softmoe.errors import UserError
from softmoe.models import mixtures
from softmoe.models.config import MoEConfig, TransformerConfig
from softmoe.weights import upcycle

D, F, E, M = 8, 16, 8, 12
TOP2 = dict(router='tokens_choice', k=2, normalize=True)
HALVES = dict(expert_dim=F // 2)  # of which two make an MLP


def draw(module, seed):
  """Returns the parameters of a module, all of them random."""
  rng = np.random.default_rng(seed)
  random = lambda w: jnp.asarray(rng.normal(0, 0.3, w.shape), w.dtype)
  return jax.tree.map(random, params_of(module))


def params_of(module):
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def layers(moe, activation='gelu', **options):
  """Returns a dense MLP and the MoE layer that is made of it."""
  config = TransformerConfig(
    width=D,
    mlp_dim=F,
    activation=activation,
    moe=MoEConfig(**dict(num_experts=E) | moe),
  )
  mlp = mixtures.make_mlp(config, F, nnx.Rngs(0))
  nnx.update(mlp, draw(mlp, 0))
  layer = mixtures.make_moe(config, nnx.Rngs(1))
  tree = lambda module: {'blocks': {0: {'mlp': params_of(module)}}}
  made = upcycle.upcycle(
    tree(mlp), tree(layer), UpcycleConfig(True, **options), jax.random.key(0)
  )
  nnx.update(layer, made['blocks'][0]['mlp'])
  return mlp, layer


def outputs(moe, x=None, **options):
  """Returns what MLP and layer say of the same tokens, and the routing."""
  mlp, layer = layers(moe, **options)
  if x is None:
    x = np.random.default_rng(3).normal(size=(2, M, D))
  x = jnp.asarray(x, jnp.float32)
  return mlp(x), layer(x)[0], layer.route(x)


def error(y, found):
  """Returns the distance, relative to what the MLP says."""
  return float(jnp.linalg.norm(found - y) / jnp.linalg.norm(y))


EXACT = {
  'top 2, normalised': TOP2,
  'top 1, normalised': TOP2 | dict(k=1),
  'top 2 of null experts too': TOP2 | dict(num_null=0),
  'top 4 of halves': TOP2 | HALVES | dict(k=4),
  'top 2 of halves': TOP2 | HALVES,
  'quarters beside a shared one': TOP2 | dict(expert_dim=4, shared_dim=8),
  'balanced by a bias': dict(router='bias_balanced', k=2),
  'by hash': dict(router='hash'),
  'experts take all tokens': dict(
    router='experts_choice', capacity_factor=float(E)
  ),
  'every expert on': dict(
    router='threshold', router_options=(('all_experts', True),)
  ),
  'every half on': HALVES
  | dict(router='threshold', router_options=(('all_experts', True),)),
  'a slot for each token': dict(router='identity', slots_per_expert=2),
}


@pytest.mark.parametrize('moe', EXACT.values(), ids=EXACT)
def test_it_computes_what_the_mlp_does(moe):
  if moe['router'] == 'hash':
    pytest.skip('takes token ids')
  y, found, _ = outputs(moe)
  assert error(y, found) < 1e-6
