"""MoE layers out of dense MLPs: where they compute the same, and where not."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.config import UpcycleConfig
from softmoe.errors import UserError
from softmoe.models import mixtures
from softmoe.models.config import (
  DecoderConfig,
  MoEConfig,
  TransformerConfig,
)
from softmoe.tasks import language
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
  'a shared MLP, and soft experts': dict(router='soft', shared_dim=F),
  'a shared MLP, and ReLU': dict(router='relu', k=2, shared_dim=F) | HALVES,
  'top 4 of halves': TOP2 | HALVES | dict(k=4),
  'top 2 of halves': TOP2 | HALVES,
  'quarters beside a shared one': TOP2 | dict(expert_dim=4, shared_dim=8),
  'balanced by a bias': dict(router='bias_balanced', k=2),
  'balanced by quantiles': dict(router='quantile_balanced', k=2),
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


SLOWLY = (
  'top 2, normalised',
  'top 4 of halves',
  'quarters beside a shared one',
  'balanced by quantiles',
  'every half on',
)


@pytest.mark.parametrize(
  'moe',
  [
    pytest.param(moe, id=name, marks=[pytest.mark.slow] * (name in SLOWLY))
    for name, moe in EXACT.items()
  ],
)
def test_it_computes_what_the_mlp_does(moe):
  y, found, _ = outputs(moe)
  assert error(y, found) < 1e-6


def test_swiglu_is_split_too():
  moe = TOP2 | HALVES | dict(shared_dim=8, expert_dim=4)
  y, found, _ = outputs(moe, activation='swiglu')
  assert error(y, found) < 1e-6


# Copies, so that a token gets what the MLP says times the gates that are left.
BY_GATES = {
  'top 2': TOP2 | dict(normalize=False),
  'tokens are dropped': TOP2 | dict(capacity_factor=0.5),
  'experts take two tokens each': dict(
    router='experts_choice', capacity_factor=1.0
  ),
  'up to a threshold': dict(router='threshold', threshold=0.7),
  'positive logits': dict(router='relu', k=2),
}


@pytest.mark.parametrize('moe', BY_GATES.values(), ids=BY_GATES)
def test_it_is_off_by_the_sum_of_the_gates(moe):
  y, found, routed = outputs(moe, scale=2.0)
  gates = jnp.sum(routed.gates * routed.granted, axis=-1, keepdims=True)
  assert error(2 * gates * y, found) < 1e-6
  assert error(y, outputs(moe)[1]) > 0.02


def test_a_threshold_leaves_no_more_than_it_says():
  y, found, _ = outputs(dict(router='threshold', threshold=0.7))
  left = jnp.linalg.norm(found - y, axis=-1) / jnp.linalg.norm(y, axis=-1)
  assert 0.01 < float(jnp.max(left)) < 0.3


def test_soft_experts_see_means_of_tokens():
  y, found, slots = outputs(dict(router='soft', slots_per_expert=2))
  x = np.random.default_rng(3).normal(size=(2, M, D)).astype(np.float32)
  mlp, _ = layers(dict(router='soft', slots_per_expert=2))
  means = mlp(jnp.einsum('bmd,bmes->besd', x, slots.dispatch))
  expected = jnp.einsum('besd,bmes->bmd', means, slots.combine)
  assert error(expected, found) < 1e-6
  assert error(y, found) > 0.5


@pytest.mark.parametrize('moe', [{}, HALVES], ids=['whole', 'halves'])
def test_soft_experts_are_the_mlp_where_all_tokens_are_alike(moe):
  x = np.broadcast_to(np.random.default_rng(4).normal(size=D), (1, M, D))
  y, found, _ = outputs(dict(router='soft') | moe, x)
  assert error(y, found) < 1e-6


def test_noise_sets_copies_apart():
  _, layer = layers(TOP2, noise=0.1)
  kernel = layer.experts.stacked.up.kernel[...]
  deviation = jnp.std(kernel - jnp.mean(kernel, axis=0, keepdims=True))
  assert 0.05 < float(deviation / jnp.std(kernel)) < 0.15


@pytest.mark.parametrize(
  ('moe', 'expected'),
  [
    (dict(expert_dim=5), 'expert_dim: got 5; a divisor of 16'),
    (dict(expert_dim=4, num_experts=6), 'num_experts: got 6; a multiple of 4'),
    (dict(shared_dim=20), 'shared_dim: got 20; at most 16'),
  ],
)
def test_sizes_that_do_not_fit_are_named(moe, expected):
  with pytest.raises(UserError, match=expected):
    layers(TOP2 | moe)


@pytest.mark.slow
def test_a_language_model_is_upcycled_too(tmp_path):
  (tmp_path / 'a.txt').write_text('one two three four five')
  sizes = dict(width=D, depth=2, mlp_dim=F, num_heads=2, vocab_size=257)
  data = language.Config().data.__class__(
    source=f'text:{tmp_path}', tokenizer='bytes', length=8
  )
  moe = MoEConfig(blocks=(1,), num_experts=E, **TOP2 | HALVES | dict(k=4))
  build = lambda moe: experiment_lib.build(
    language.Config(model=DecoderConfig(**sizes, moe=moe), data=data),
    jax.devices()[:1],
    training=False,
  )
  dense, sparse = build(MoEConfig()), build(moe)
  params = jax.tree.map(lambda w: w + 0.01, dense.init_params())
  made = upcycle.upcycle(
    params, sparse.init_params(), UpcycleConfig(True), jax.random.key(0)
  )
  batch = jax.tree.map(
    lambda x: jnp.full(x.shape, 7, x.dtype), dense.task.abstract_batch(2)
  )
  infer = lambda e, params: e.task.infer(nnx.merge(e.graphdef, params), batch)
  y, found = infer(dense, params), infer(sparse, made)
  np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5)
