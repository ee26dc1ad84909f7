"""A loop over the rows of one expert, whose length follows their number.

Axes: `n` rows, `chunk` rows of one turn.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK = 128  # rows; 64 to 256 are within a few percent
PARTS = 4  # an expert's last chunk is cut to this many parts, rounded up


def each_chunk(
  body: Callable[..., Any],
  state: Any,
  start: Int[Array, ''],
  count: Int[Array, ''],
  chunk: int = CHUNK,
) -> Any:
  """Returns `state` after a loop over the rows start, ..., start + count - 1.

  Calls state = body(state, rows, real, run) for each chunk of them.
    rows: int32 (chunk), the rows; the last one repeats to fill up the chunk.
    real: bool (chunk), False where it does.
    run: run(step) calls step(n) with the fewest n, of the PARTS of a chunk,
      that hold the real rows; n is static, what step returns has one shape.
  """
  lane = jnp.arange(chunk, dtype=jnp.int32)

  def step(carry):
    done, state = carry
    rows = start + jnp.minimum(done + lane, count - 1)
    run = functools.partial(_run_short, left=count - done, chunk=chunk)
    state = body(state, rows, done + lane < count, run)
    return done + chunk, state

  first = jnp.zeros_like(count), state
  return jax.lax.while_loop(lambda carry: carry[0] < count, step, first)[1]


def _run_short(
  step: Callable[[int], Any], left: Int[Array, ''], chunk: int
) -> Any:
  part = chunk // PARTS
  steps = [functools.partial(step, part * (i + 1)) for i in range(PARTS)]
  return jax.lax.switch((left - 1) // part, steps)  # clamps to the last


def pad(x: Float[Array, 'n *d'], chunk: int) -> Float[Array, 'chunk *d']:
  """Returns x in float32 with zeros after its rows, `chunk` in all."""
  x = x.astype(jnp.float32)
  return jnp.pad(x, [(0, chunk - len(x))] + [(0, 0)] * (x.ndim - 1))
