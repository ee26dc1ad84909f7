"""What an optimizer remembers of each parameter, and how it goes on with it."""

from typing import Any

import jax
import optax

from softmoe.config import OptimizerConfig

State = Any  # of an optimizer
# Trees like the parameters in the state of each optimizer that can go on with
# another run's. Adafactor's are factored: not of the parameters' shapes.
NAMES = {'adam': ('mu', 'nu'), 'adamw': ('mu', 'nu'), 'sgd': ('trace',)}
# What Adam then counts as steps: so many that its means need no correction for
# having started at 0. The learning rate has a count of its own.
STEPS_BEFORE = 1_000_000


def moments(config: OptimizerConfig, state: State) -> dict[str, Any]:
  """Returns the trees in the state, or in its shapes, by name."""
  return {
    name: optax.tree_utils.tree_get(state, name) for name in NAMES[config.name]
  }


def resume(state: State, trees: dict[str, Any]) -> State:
  """Returns the state of an optimizer that goes on with these moments.

  Args:
    state: at step 0.
    trees: as `moments` gives them.
  """
  state = optax.tree_utils.tree_set(state, **trees)
  return jax.tree.map(
    lambda node: _later(node) if _is_adam(node) else node,
    state,
    is_leaf=_is_adam,
  )


def _is_adam(node: Any) -> bool:
  return isinstance(node, optax.ScaleByAdamState)


def _later(node: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
  return node._replace(count=node.count + STEPS_BEFORE)
