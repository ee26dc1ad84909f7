"""Tiles of matrices in a GPU kernel, masked where a matrix ends."""

import functools
from typing import Any

from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

# The first index of a tile along an axis, its size, and where the axis ends.
Span = tuple[Array | int, int, Array | int]


def load(ref: Any, rows: Span, columns: Span, *first: Any) -> Array:
  """Returns the tile of a matrix, or of that which `first` is the index of."""
  index, mask = _tile(rows, columns)
  other = None if mask is None else 0.0
  return triton.load(ref.at[(*first, *index)], mask=mask, other=other)


def store(ref: Any, tile: Array, rows: Span, columns: Span, *first: Any):
  """Writes what of a tile is inside."""
  index, mask = _tile(rows, columns)
  place = ref.at[(*first, *index)]
  triton.store(place, tile.astype(ref.dtype), mask=mask)


def _tile(*spans: Span) -> tuple[list[Any], Array | None]:
  """Returns where a tile is, and which of it is there; None: all."""
  masks = []
  for axis, (start, size, stop) in enumerate(spans):
    if not isinstance(stop, int) or stop % size:
      inside = start + jnp.arange(size, dtype=jnp.int32) < stop
      masks.append(jnp.expand_dims(inside, 1 - axis))
  index = [pl.dslice(start, size) for start, size, _ in spans]
  shape = tuple(size for _, size, _ in spans)
  whole = [jnp.broadcast_to(mask, shape) for mask in masks]
  return index, functools.reduce(jnp.logical_and, whole) if whole else None
