"""Layers with every router, and random cases to run them on."""

import functools

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from softmoe.models import config as model_config
from softmoe.models import mixtures, vit
from softmoe.moe import layer
from softmoe.moe.routers import hashing, soft

P = jax.P
VOCABULARY = 11
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time

TOP_2 = dict(
  router='tokens_choice',
  k=2,
  noise_std=2.0,
  losses=(('importance', 0.3), ('load', 0.2), ('z', 0.1)),
)
EXPERTS_CHOICE = dict(router='experts_choice', capacity_factor=1.5)
THRESHOLD = dict(router='threshold', group_size=2)
BIAS_BALANCED = dict(router='bias_balanced', k=2)
CASES = {
  'soft': dict(router='soft', slots_per_expert=2, group_size=2),
  'uniform': dict(router='uniform'),
  'uniform_soft': dict(router='uniform_soft', shared_dim=4),
  'soft_uniform': dict(router='soft_uniform'),
  'identity': dict(router='identity'),
  'mixture_of_tokens': dict(router='mixture_of_tokens', group_size=2),
  'tokens_choice': TOP_2 | dict(capacity_factor=0.6, group_size=2),
  'tokens_choice dropless': TOP_2 | dict(shared_dim=4, normalize=True),
  'experts_choice': EXPERTS_CHOICE | dict(group_size=2, noise_std=2.0),
  'threshold': THRESHOLD | dict(capacity_factor=1.2, threshold=0.7),
  'threshold dropless': THRESHOLD | dict(threshold=0.6),
  'bias_balanced': BIAS_BALANCED | dict(capacity_factor=0.8),
  'bias_balanced dropless': BIAS_BALANCED | dict(shared_dim=4),
  'quantile_balanced': dict(router='quantile_balanced', k=2),
  'expert_threshold': dict(router='expert_threshold', k=2, group_size=2),
  'relu': dict(router='relu', k=2, group_size=2),
  'segment_soft': dict(
    router='segment_soft', segment=2, slots_per_expert=2, shared_dim=4
  ),
  'hash': dict(router='hash'),
  # As where there are many tokens and slots.
  'soft tiles': dict(router='soft', slots_per_expert=2, group_size=2),
  # As accelerators do it.
  'tokens_choice grouped': TOP_2 | dict(group_size=2),
  'hash grouped': dict(router='hash'),
}
CAPACITY = {'tokens_choice', 'experts_choice', 'threshold', 'bias_balanced'}
GROUPED = {'tokens_choice grouped', 'hash grouped'}
DROPLESS = {name for name in CASES if 'dropless' in name}
DROPLESS |= {'quantile_balanced', 'expert_threshold', 'relu', 'hash'}
SLOTS = set(CASES) - CAPACITY - DROPLESS - GROUPED

# Examples, tokens, width, experts, hidden width.
SHAPES = [
  (2, 1, 4, 1, 3),
  (2, 1, 5, 3, 4),
  (2, 7, 4, 1, 5),
  (2, 8, 4, 4, 6),
  (4, 5, 6, 5, 7),
  (2, 9, 8, 8, 8),
  (2, 6, 4, 16, 4),
  (4, 3, 8, 7, 5),
  (2, 11, 3, 12, 4),
  (2, 4, 8, 10, 3),
  (6, 2, 8, 3, 5),
  (2, 10, 2, 9, 4),
]


class Tiled(soft.SoftRouter):
  """Makes its weights in tiles however few they are."""

  def factors(self, x, *, mask=None):
    return self._factors(x, mask)


def on_mesh(name):
  """Returns a shape that fills the groups of eight devices."""
  return 8 * CASES[name].get('group_size', 1), 5, 6, 8, 7


@functools.cache
def make(name, shape):
  """Returns a layer whose parameters are shapes without numbers."""
  _, _, width, num_experts, hidden = shape
  fields = CASES[name] | dict(num_experts=num_experts)
  fields['k'] = min(fields.get('k', 1), num_experts)
  hashed = fields['router'] == 'hash'
  fields['router'] = 'relu' if hashed else fields['router']
  moe = model_config.MoEConfig(**fields)
  config = vit.ViTConfig(width=width, mlp_dim=hidden, moe=moe)
  module = nnx.eval_shape(lambda: mixtures.make_moe(config, nnx.Rngs(0)))
  if hashed:  # not in a config of images, which have no token ids
    router = hashing.HashRouter(num_experts, VOCABULARY)
    module = layer.MoE(router, module.experts)
  if name == 'soft tiles':
    slots = width, num_experts, fields['slots_per_expert']
    router = nnx.eval_shape(lambda: Tiled(*slots, rngs=nnx.Rngs(0)))
    module.router = router
  module.implementation = 'grouped' if name in GROUPED else 'auto'
  return module


@functools.cache
def draw(name, shape, seed):
  """Returns parameters, tokens, mask, ids, key and weights of the outputs."""
  b, m, width, _, _ = shape
  rng = np.random.default_rng((seed, *shape))
  normal = lambda shape: rng.normal(size=shape).astype(np.float32)
  sharpness, skew = rng.uniform(0.5, 3), rng.choice([0, 0, 2])

  def weight(path, leaf):
    # Small in experts: where their GELU saturates all is rounding.
    scale = sharpness if path[0].key == 'router' else 0.5
    size = leaf.shape[-2] if leaf.ndim > 1 else 1
    return normal(leaf.shape) * np.float32(scale * size**-0.5)

  params = nnx.to_pure_dict(nnx.state(make(name, shape)))
  params = jax.tree_util.tree_map_with_path(weight, params)
  x = normal((b, m, width)) + np.float32(skew) * normal(width)
  mask = rng.random((b, m)) < rng.choice([0.6, 1.0])
  mask[:, 0] = True
  busiest = rng.choice([2, VOCABULARY])
  ids = rng.integers(0, busiest, (b, m)) if 'hash' in name else None
  return params, x, mask, ids, jax.random.key(seed), normal(x.shape)


def run(graphdef, params, x, mask, ids, key, dy):
  """Returns the layer's output, aux, and gradients of parameters and tokens."""

  def objective(params, x):
    y, aux = nnx.merge(graphdef, params)(x, mask, key=key, token_ids=ids)
    return jnp.sum(y * dy) + sum(aux['losses'].values()), (y, aux)

  gradients, (y, aux) = jax.grad(objective, (0, 1), has_aux=True)(params, x)
  return y, aux, gradients


@functools.cache
def compiled(name, shape, sizes):
  """Returns `run` for the mesh of these sizes, which is in force."""
  graphdef = nnx.graphdef(make(name, shape))
  arguments = place(draw(name, shape, 0), sizes)
  jitted = jax.jit(functools.partial(run, graphdef), compiler_options=QUICK)
  return jitted.lower(*arguments).compile()


def place(case, sizes):
  if sizes is None:
    return case
  params, *tokens, key, dy = case
  put = lambda spec: lambda v: jax.device_put(v, spec)
  params = {
    name: jax.tree.map(put(P('expert') if name == 'experts' else P()), tree)
    for name, tree in params.items()
  }
  tokens, dy = jax.tree.map(put(P(('data', 'expert'))), (tokens, dy))
  return params, *tokens, jax.device_put(key, P()), dy
