"""Arguments with a gradient, apart from those without."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp


def split(tree: Any) -> tuple[list, list, Callable[[list, list], Any]]:
  """Returns a tree's floats, its other arrays, and what joins the two."""
  leaves, structure = jax.tree.flatten(tree)
  is_float = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
  floats = [a if f else None for a, f in zip(leaves, is_float, strict=True)]
  others = [None if f else a for a, f in zip(leaves, is_float, strict=True)]

  def join(floats, others):
    both = zip(floats, others, strict=True)
    return structure.unflatten([b if a is None else a for a, b in both])

  return floats, others, join
