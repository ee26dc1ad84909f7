"""What the machine at hand can do at best: the floor under every time."""

import dataclasses

import jax
from jax import numpy as jnp

from softmoe.process import interleaved


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
  programs = {'matmul': lambda: matmul(x), 'copy': lambda: copy(y)}
  best = {n: min(s) for n, s in interleaved.seconds(programs, 5).items()}
  return Rates(
    flops=2 * size**3 / best['matmul'], memory=2 * y.nbytes / best['copy']
  )
