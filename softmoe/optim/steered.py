"""Parameters that a rule moves, beside those that an optimizer does.

The loss of an MoE layer has, in place of their gradient, the statistic that the
rule reads (see `moe.routing.Steered`). It is added over devices, blocks of a
batch and calls as a gradient is; the rule then sees that of the whole batch.

    graphdef, params = nnx.split(model, nnx.Param)
    optimizer = steered.steered(optax.adam(1e-3), model)
    state = optimizer.init(params)
    ...
    updates, state = optimizer.update(gradients, state, params)
"""

from typing import Any

import jax
import optax
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.moe import routing


def steered(
  optimizer: optax.GradientTransformation, model: Any
) -> optax.GradientTransformationExtraArgs:
  """Returns `optimizer` for all but steered parameters, and rules for these.

  The optimizer sees gradients of 0 where a parameter is steered, so that its
  clipping is not disturbed. The rule moves the parameter once an update.

  Args:
    optimizer: any; its updates are added to the parameters.
    model: see `rules`; or what `rules` returns.
  """
  moved = _by_path(rules(model))
  optimizer = optax.with_extra_args_support(optimizer)

  def update(updates, state, params=None, **extra):
    if params is None:
      raise UserError('params', None, 'the parameters, which rules read')
    others = _hidden(updates, moved)
    others, state = optimizer.update(others, state, params, **extra)

    def move(path, other, statistic, value):
      rule = moved.get(_name(path))
      return other if rule is None else rule(value, statistic) - value

    move_all = jax.tree_util.tree_map_with_path
    return move_all(move, others, updates, params), state

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


def without(gradients: Any, model: Any) -> Any:
  """Returns the gradients, with 0 where a statistic is in their place.

  Args:
    gradients: a tree as that of the parameters; or the parameters, or updates.
    model: as in `steered`.
  """
  return _hidden(gradients, _by_path(rules(model)))


def rules(model: Any) -> Any:
  """Returns the rule of each parameter, None where there is none.

  Args:
    model: an `nnx.Module`, a state of its parameters, or any pytree of
      `nnx.Variable`s, with or without numbers in them.

  Returns:
    A tree as that of the parameters, of plain dicts for a module or a state.
  """
  if isinstance(model, nnx.Module):
    model = nnx.state(model, nnx.Param)
  found = jax.tree.map(_rule, model, is_leaf=_is_leaf)
  return nnx.to_pure_dict(found) if isinstance(found, nnx.State) else found


def _hidden(gradients: Any, moved: dict[str, routing.Rule]) -> Any:
  hide = lambda path, g: jnp.zeros_like(g) if _name(path) in moved else g
  return jax.tree_util.tree_map_with_path(hide, gradients)


def _is_leaf(x: Any) -> bool:
  return isinstance(x, nnx.Variable | routing.Rule)


def _rule(leaf: Any) -> routing.Rule | None:
  if isinstance(leaf, nnx.Variable):
    steered = isinstance(leaf, routing.Steered)
    return leaf.get_metadata('rule') if steered else None
  return leaf if isinstance(leaf, routing.Rule) else None


def _by_path(tree: Any) -> dict[str, routing.Rule]:
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_leaf)
  return {_name(path): rule for path, rule in leaves}


def _name(path: tuple[Any, ...]) -> str:
  """Returns the same name for a number in a dict and in an `nnx.Variable`."""
  inside = jax.tree_util.GetAttrKey('value')
  path = path[:-1] if path and path[-1] == inside else path
  return jax.tree_util.keystr(path, simple=True, separator='/')
