"""Arrays of a kernel inside `jax.shard_map`, which types what differs."""

from typing import Any

import jax
from jaxtyping import Array


def alike(*arrays: Array) -> tuple[tuple[Array, ...], Any]:
  """Returns arrays that all vary over the axes over which any does.

  Returns:
    The arrays, and their `manual_axis_type`, which is that of the kernel's
    results: no kernel says so by itself.
  """
  axes = [jax.typeof(a).manual_axis_type.varying for a in arrays]
  most = frozenset().union(*axes)
  vary = lambda a, has: jax.lax.pcast(a, tuple(most - has), to='varying')
  arrays = tuple(map(vary, arrays, axes))
  return arrays, jax.typeof(arrays[0]).manual_axis_type
