"""TEMPORARY"""

import jax


def rules(model):
  from flax import nnx

  return nnx.to_pure_dict(
    jax.tree.map(
      lambda v: v.replace(None),
      nnx.state(model, nnx.Param),
      is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
  )


def steered(optimizer, rules):
  return optimizer


def without(gradients, rules):
  return gradients
