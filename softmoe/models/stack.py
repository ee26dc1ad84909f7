"""TEMPORARY"""

import jax
from flax import nnx


def stacked(model):
  return nnx.to_pure_dict(
    jax.tree.map(
      lambda v: v.replace(0),
      nnx.state(model, nnx.Param),
      is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
  )
