"""How much a model computes, and how much a device can.

FLOP here counts a multiply and an add as two, as the papers' tables do.
"""

import dataclasses
import math
import time
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.costs import chips
from softmoe.models import config as model_config
from softmoe.models import mixtures


def forward_flops(
  config: config_lib.Config, experts_per_token: float | None = None
) -> float:
  """Returns the FLOPs of one image's evaluation, as the compiler counts.

  The count is of the traced program, before the compiler rewrites it. A `scan`
  would count its body once, so the blocks are unrolled for it. All types are
  float32 for it, since the casts of the weights, which are done once a batch,
  would count as well.

  Args:
    config: of the model.
    experts_per_token: how many run on average where the tokens decide, as was
      measured; None: the router's k, or all experts if it has none.
  """
  moe = config.model.moe
  if not moe.blocks or not mixtures.is_dropless(moe):
    return _count(config)
  if experts_per_token is None:
    adaptive = mixtures.is_adaptive(moe)
    experts_per_token = moe.num_experts if adaptive else moe.k
  # A loop over the tokens of an expert would count once as well. Experts Choice
  # costs the same for as many tokens, in buffers that count right; the cost is
  # linear between one token an expert and all of them.
  tokens = 2 * _num_tokens(config)
  fewest, most = moe.num_experts / tokens, float(moe.num_experts)
  low, high = (_count(_experts_choice(config, c)) for c in (fewest, most))
  share = (experts_per_token - fewest) / (most - fewest)
  return low + share * (high - low)


def active_params(experiment: experiment_lib.Experiment) -> int:
  """Returns the number of parameters that work for a token, on average.

  Those of experts count by how many experts run for a token; where the tokens
  decide, all do.
  """
  config = experiment.config
  moe, leaves = config.model.moe, experiment.abstract_params
  share = 1.0
  if moe.blocks:
    running = mixtures.experts_per_token(moe, _num_tokens(config))
    share = min(running / moe.num_experts, 1.0)

  def count(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return math.prod(leaf.shape) * (share if '/experts/' in name else 1)

  counts = jax.tree_util.tree_map_with_path(count, leaves)
  return round(sum(jax.tree.leaves(counts)))


def is_fixed(config: config_lib.Config) -> bool:
  """Tells whether an image's evaluation costs the same whatever it shows."""
  moe = config.model.moe
  return not (moe.blocks and mixtures.is_adaptive(moe))


def in_training(config: config_lib.Config) -> config_lib.Config:
  """Returns a config whose evaluation costs a forward pass of training."""
  moe = mixtures.in_training(config.model.moe)
  model = dataclasses.replace(config.model, moe=moe)
  return dataclasses.replace(config, model=model)


def _count(config: config_lib.Config) -> float:
  """Returns the FLOPs of an image in the smallest batch the model can take."""
  moe = config.model.moe
  images = moe.group_size if moe.blocks else 1
  with jax.set_mesh(_one_device_mesh()):
    plain = _plain(config)
    make = lambda: experiment_lib.make_model(plain, nnx.Rngs(0))
    batch = jax.ShapeDtypeStruct(
      (images, *config.data.image_size, config.data.channels), jnp.float32
    )
    lowered = jax.jit(lambda m, x: m(x)[0]).lower(jax.eval_shape(make), batch)
    cost: Any = lowered.cost_analysis()
    return cost['flops'] / images


def _experts_choice(
  config: config_lib.Config, capacity_factor: float
) -> config_lib.Config:
  old = config.model.moe
  moe = model_config.MoEConfig(
    router='experts_choice',
    blocks=old.blocks,
    num_experts=old.num_experts,
    expert_dim=old.expert_dim,
    shared_dim=old.shared_dim,
    group_size=2,
    capacity_factor=capacity_factor,
  )
  model = dataclasses.replace(config.model, moe=moe)
  return dataclasses.replace(config, model=model)


def _num_tokens(config: config_lib.Config) -> int:
  sizes = zip(config.data.image_size, config.model.patch_size, strict=True)
  return math.prod(size // patch for size, patch in sizes) + (
    config.model.pool == 'token'
  )


def _plain(config: config_lib.Config) -> config_lib.Config:
  """Returns the config of the same model, unrolled and in float32."""
  model = dataclasses.replace(
    config.model,
    scan=False,
    remat=False,
    dtype='float32',
    param_dtype='float32',
  )
  return dataclasses.replace(config, model=model)


def _one_device_mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh('data:1', jax.devices()[:1])


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
  """Returns the FLOP/s of the mesh's devices together; None if not known.

  On a CPU, whose devices share its cores, it is the rate of one large float32
  matmul on all of them, measured.
  """
  if jax.default_backend() == 'cpu':
    return _measure_matmul(mesh)
  chip = chips.of_kind(jax.devices()[0].device_kind)
  return chip.flops * mesh.size if chip else None


def _measure_matmul(
  mesh: jax.sharding.Mesh, size: int = 1024, repeats: int = 3
) -> float:
  """Returns the best float32 matmul rate, every device with rows of its own."""
  place = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
  x = jax.device_put(jnp.ones((size * mesh.size, size)), place)
  matmul = jax.jit(lambda x, y: x @ y)
  y = jnp.ones((size, size))
  matmul(x, y).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    matmul(x, y).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size * x.size / min(seconds)
