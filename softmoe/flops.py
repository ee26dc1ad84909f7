"""How much a model computes, and how much a device can.

FLOP here counts a multiply and an add as two, as the papers' tables do.
"""

import dataclasses
import time
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding

# Dense peak FLOP/s of one device in bfloat16, by prefix of `device_kind`; from
# the makers' data sheets. Where JAX shows two devices a chip, half the chip's.
PEAKS = {
  'TPU v2': 22.5e12,
  'TPU v3': 61.5e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA B200': 2250e12,
}


def forward_flops(config: config_lib.Config) -> float:
  """Returns the FLOPs of one image's forward pass, as the compiler counts.

  The count is of the traced program, before the compiler rewrites it. A `scan`
  would count its body once, so the blocks are unrolled for it. All types are
  float32 for it, since the casts of the weights, which are done once a batch,
  would count as well.
  """
  with jax.set_mesh(_one_device_mesh()):
    plain = _plain(config)
    make = lambda: experiment_lib.make_model(plain, nnx.Rngs(0))
    image = jax.ShapeDtypeStruct(
      (1, *config.data.image_size, config.data.channels), jnp.float32
    )
    lowered = jax.jit(lambda m, x: m(x)[0]).lower(jax.eval_shape(make), image)
    cost: Any = lowered.cost_analysis()
    return cost['flops']


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
  return jax.make_mesh((1, 1), sharding.AXES, devices=jax.devices()[:1])


def peak_flops(mesh: jax.sharding.Mesh) -> float | None:
  """Returns the FLOP/s of the mesh's devices together; None if not known.

  On a CPU, whose devices share its cores, it is the rate of one large float32
  matmul on all of them, measured.
  """
  if jax.default_backend() == 'cpu':
    return _measure_matmul(mesh)
  kind = jax.devices()[0].device_kind
  known = [peak for prefix, peak in PEAKS.items() if kind.startswith(prefix)]
  return known[0] * mesh.size if known else None


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
