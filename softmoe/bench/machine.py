"""What the machine at hand can do at best: the floor under every time."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp


@dataclasses.dataclass(frozen=True)
class Rates:
  """Measured rates.

  Attributes:
    flops: of a large matmul, in FLOP/s.
    memory: read and written by a copy of a large array, in bytes/s.
  """

  flops: float
  memory: float

  def floor(self, flops: float, num_bytes: float) -> float:
    """Returns the seconds below which no program does so much."""
    return max(flops / self.flops, num_bytes / self.memory)


def measure(dtype: str, size: int = 0) -> Rates:
  """Returns the rates of one device.

  Args:
    dtype: of both sides of the matmul.
    size: of the matrices; 0: one that takes a device milliseconds.
  """
  size = size or (2048 if jax.default_backend() == 'cpu' else 8192)
  x = jnp.ones((size, size), dtype)
  matmul = jax.jit(lambda x: x @ x)
  y = jnp.ones((16 * size, size), dtype)
  copy = jax.jit(lambda y: y + 1)
  return Rates(
    flops=2 * size**3 / _best(lambda: matmul(x)),
    memory=2 * y.nbytes / _best(lambda: copy(y)),
  )


def _best(program: Callable[[], Any], repeats: int = 5) -> float:
  jax.block_until_ready(program())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(program())
    seconds.append(time.perf_counter() - start)
  return min(seconds)
