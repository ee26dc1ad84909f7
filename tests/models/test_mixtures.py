"""From config fields to layers: what each router is given, and bad fields.

Layers are made without numbers: all that is asked is how they are put together.
"""

import dataclasses
import math

import jax
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import config as model_config
from softmoe.models import mixtures, vit
from softmoe.moe import routing
from softmoe.moe.routers import soft, threshold, tokens_choice

WIDTH, MLP_DIM = 6, 10
OWN = f'{__name__}:NearestExpert'
NEEDED = {
  'experts_choice': dict(capacity_factor=1.0),
  'hash': dict(router_options=(('vocab_size', 50),)),
}


def make(router, **fields):
  config = vit.ViTConfig(
    width=WIDTH,
    mlp_dim=MLP_DIM,
    dtype='bfloat16',
    moe=model_config.MoEConfig(
      **dict(router=router, num_experts=4) | NEEDED.get(router, {}) | fields
    ),
  )
  return nnx.eval_shape(lambda: mixtures.make_moe(config, nnx.Rngs(0)))


class NearestExpert(nnx.Module):
  """A router that this package does not know."""

  def __init__(self, dim, experts, *, beta, gamma=1.0, rngs):
    if beta < 0:
      raise UserError('beta', beta, '0 or more')
    self.num_experts, self.beta, self.gamma = experts, beta, gamma
    self.centers = nnx.Param(jnp.zeros((dim, experts)))

  def __call__(self, x, *, mask=None, key=None):
    distance = jnp.sum((x[:, :, None] - self.centers[...][None]) ** 2, axis=1)
    first = distance == jnp.min(distance, axis=1, keepdims=True)
    priority = jnp.where(first, 0.0, -jnp.inf)
    return routing.Assignment(first * self.beta, priority), routing.Aux()


class Typed(NearestExpert):
  """One that takes the parameters' type, and anything else."""

  def __init__(self, *sizes, param_dtype=None, rngs, **options):
    super().__init__(*sizes, beta=1.0, rngs=rngs)
    self.param_dtype, self.options = param_dtype, options


def shapes(module):
  return jax.tree.map(lambda w: w.shape, nnx.to_pure_dict(nnx.state(module)))


@pytest.mark.parametrize('router', mixtures.ROUTERS)
def test_every_router_makes_a_layer(router):
  layer = make(router)
  assert layer.router.num_experts == 4
  assert layer.group_size == 1 and layer.shared is None
  stacked = shapes(layer.experts.stacked)
  assert stacked['up']['kernel'] == (4, WIDTH, MLP_DIM)
  assert stacked['down']['kernel'] == (4, MLP_DIM, WIDTH)
  assert layer.experts.stacked.up.dtype == jnp.bfloat16


@pytest.mark.parametrize('router', mixtures.ROUTERS)
def test_fields_of_a_router_are_fields_of_the_config(router):
  known = {field.name for field in dataclasses.fields(model_config.MoEConfig)}
  assert set(mixtures.ROUTERS[router].fields) <= known
  assert known >= mixtures.COMMON


def test_every_field_is_read_by_a_router():
  known = {field.name for field in dataclasses.fields(model_config.MoEConfig)}
  read = set().union(*(entry.fields for entry in mixtures.ROUTERS.values()))
  assert known == read | mixtures.COMMON


def test_routers_get_their_fields():
  layer = make(
    'tokens_choice',
    k=3,
    capacity_factor=1.5,
    eval_capacity_factor=2.0,
    batch_priority=True,
    num_null=2,
    noise_std=0.5,
    losses=(('z', 0.1),),
    group_size=5,
  )
  router = layer.router
  assert isinstance(router, tokens_choice.TokensChoice)
  assert (router.k, router.num_null, router.noise_std) == (3, 2, 0.5)
  assert (router.capacity_factor, router.eval_capacity_factor) == (1.5, 2.0)
  assert router.batch_priority and router.losses == (('z', 0.1),)
  assert layer.group_size == 5
  assert shapes(router) == {'kernel': (WIDTH, 6)}
  assert make('mixture_of_tokens', group_size=3).router.group_size == 3
  assert make('relu', k=2).router.k == 2
  assert make('quantile_balanced', k=3).router.candidates.rule.share == 3 / 4
  assert make('expert_threshold', k=2).router.k == 2
  assert make('bias_balanced', rate=0.5).router.bias.rule.rate == 0.5
  assert make('experts_choice', softmax_over='tokens').router.softmax_over == (
    'tokens'
  )


@pytest.mark.parametrize('router', ['tokens_choice', 'threshold'])
def test_no_factor_drops_nothing_and_evaluation_is_as_training(router):
  dropless = make(router).router
  assert dropless.capacity_factor is dropless.eval_capacity_factor is None
  same = make(router, capacity_factor=1.5).router
  assert same.capacity_factor == same.eval_capacity_factor == 1.5


def test_threshold_takes_its_mode_from_the_capacity():
  assert isinstance(make('threshold').router, threshold.Threshold)
  assert make('threshold').router.mode == 'dropless'
  assert make('threshold', capacity_factor=1.5).router.mode == 'capacity'


def test_soft_ablations():
  kinds = lambda router: (
    make(router).router.dispatch,
    make(router).router.combine,
  )
  assert kinds('soft') == ('soft', 'soft')
  assert kinds('uniform') == ('uniform', 'uniform')
  assert kinds('uniform_soft') == ('uniform', 'soft')
  assert kinds('soft_uniform') == ('soft', 'uniform')
  assert isinstance(make('identity').router, soft.IdentityRouter)
  assert shapes(make('uniform').router) == shapes(make('identity').router) == {}
  two = shapes(make('soft', slots_per_expert=2).router)
  assert two == {'phi': (WIDTH, 4, 2), 'scale': ()}


@pytest.mark.parametrize('router', ['soft', 'uniform_soft', 'soft_uniform'])
def test_the_scale_starts_where_the_config_says(router):
  for fields, start in (({}, 1.0), (dict(scale_init=-8.0), -8.0)):
    moe = model_config.MoEConfig(router=router, num_experts=4, **fields)
    config = vit.ViTConfig(width=WIDTH, mlp_dim=MLP_DIM, moe=moe)
    made = mixtures.make_router(config, nnx.Rngs(0))
    assert made.scale[...] == start and made.scale.dtype == jnp.float32


def test_sizes_of_experts_and_shared_expert():
  layer = make('relu', expert_dim=3, shared_dim=5)
  assert shapes(layer.experts.stacked)['up']['kernel'] == (4, WIDTH, 3)
  assert shapes(layer.shared)['up']['kernel'] == (WIDTH, 5)


def test_a_router_of_ones_own():
  layer = make(OWN, router_options=(('beta', 0.5),))
  assert isinstance(layer.router, NearestExpert)
  assert (layer.router.beta, layer.router.gamma) == (0.5, 1.0)
  assert shapes(layer.router) == {'centers': (WIDTH, 4)}
  x = jnp.ones((2, 3, WIDTH))
  y, aux = jax.eval_shape(lambda layer, x: layer(x), layer, x)
  assert y.shape == x.shape and 'executed' in aux['metrics']


def test_a_router_of_ones_own_that_takes_a_type_and_anything():
  layer = make(f'{__name__}:Typed', router_options=(('any', 3),))
  assert layer.router.param_dtype == jnp.float32
  assert layer.router.options == {'any': 3}


def test_routing_by_token_ids_may_be_forced():
  assert make('hash', forced_routing='even').forced_routing == 'even'


def test_further_arguments_of_known_routers():
  router = make('hash', router_options=(('vocab_size', 9), ('seed', 3))).router
  assert (router.vocab_size, router.seed, router.num_experts) == (9, 3, 4)
  options = (('min_capacity', 2), ('all_experts', True))
  router = make('threshold', router_options=options).router
  assert router.min_capacity == 2 and router.all_experts


OPTIONS = 'router_options: got'


@pytest.mark.parametrize(
  ('router', 'fields', 'message'),
  [
    ('tokens_choice', dict(k=5), 'k: got 5; 1 to 4, the number of experts'),
    ('bias_balanced', dict(k=5), 'k: got 5; 1 to 4, the number of experts'),
    ('quantile_balanced', dict(rate=0.5), 'rate: got 0.5; 0.001: the router '),
    ('expert_threshold', dict(k=5), 'k: got 5; above 0, at most 4'),
    ('relu', dict(k=5), 'k: got 5; above 0, at most 4'),
    ('threshold', dict(threshold=1.5), 'threshold: got 1.5; above 0, at most'),
    ('tokens_choice', dict(capacity_factor=-1.0), 'capacity_factor: got -1.0'),
    ('experts_choice', dict(capacity_factor=0.0), 'capacity_factor: got 0'),
    (
      'threshold',
      dict(eval_capacity_factor=2.0),
      'eval_capacity_factor: got 2.0; 0, or a capacity_factor above 0 as well',
    ),
    ('hash', dict(exchange_chunks=2), 'exchange_chunks: got 2; 1, since dropl'),
    ('tokens_choice', dict(losses=(('y', 1.0),)), "losses: got 'y'; names out"),
    ('mixture_of_tokens', dict(temperature=-1.0), 'temperature: got -1.0; at'),
    ('soft', dict(num_experts=0), 'num_experts: got 0; at least 1'),
    ('soft', dict(slots_per_expert=0), 'slots_per_expert: got 0; at least 1'),
    (
      'tokens_choice',
      dict(batch_priority=True),
      'batch_priority: got True; False: without a capacity',
    ),
    ('soft', dict(scale_init=0.0), 'scale_init: got 0.0; finite and not 0'),
    ('soft', dict(scale_init=math.inf), 'scale_init: got inf; finite'),
    ('uniform', dict(scale_init=8.0), "scale_init: got 8.0; 1.0: the router '"),
    (
      'uniform',
      dict(router_options=(('scale_init', 8.0),)),
      f"{OPTIONS} ('scale_init', 8.0); 1.0: uniform weights have no scale",
    ),
    ('soft', dict(expert_init='same'), "expert_init: got 'same'; one of"),
    ('soft', dict(group_size=0), 'group_size: got 0; at least 1'),
    ('sofa', {}, "router: got 'sofa'; one of ['bias_balanced', "),
    ('soft', dict(k=2), "k: got 2; 1: the router 'soft' does not read it"),
    ('relu', dict(threshold=0.5), 'threshold: got 0.5; 0.9: the router '),
    ('no_such:Router', {}, "router: got 'no_such:Router'; 'module:Name' that"),
    (OWN, dict(k=2), 'k: got 2; 1: a router of your own takes its settings by'),
    (OWN, {}, f"{OPTIONS} (); a value of 'beta' too"),
    (
      OWN,
      dict(router_options=(('alpha', 1),)),
      f"{OPTIONS} 'alpha'; {OWN!r} takes each of ['beta', 'gamma'] once",
    ),
    (OWN, dict(router_options=(('dim', 1),)), f"{OPTIONS} 'dim'; "),
    (
      OWN,
      dict(router_options=(('beta', -1),)),
      f"{OPTIONS} ('beta', -1); 0 or more",
    ),
    ('hash', dict(router_options=()), f"{OPTIONS} (); a value of 'vocab_size'"),
    ('relu', dict(router_options=(('k', 1),)), f"{OPTIONS} 'k'; 'relu' takes"),
    ('uniform', dict(router_options=(('combine', 'soft'),)), f'{OPTIONS} '),
    ('soft', dict(router_options=(('rngs', 1),)), f"{OPTIONS} 'rngs'; 'soft'"),
    ('threshold', dict(router_options=(('mode', 'causal'),)), f'{OPTIONS} '),
    (
      'hash',
      dict(router_options=(('seed', 1), ('seed', 2), ('vocab_size', 3))),
      f"{OPTIONS} 'seed'; 'hash' takes each of ['seed', 'vocab_size'] once",
    ),
  ],
)
def test_bad_fields_are_named(router, fields, message):
  with pytest.raises(UserError) as error:
    make(router, **fields)
  assert str(error.value).startswith(f'config.model.moe.{message}')
