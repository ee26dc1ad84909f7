"""How much the devices here can compute."""

import time

import jax
from jax import numpy as jnp

from softmoe.costs import chips


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
