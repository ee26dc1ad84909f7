"""What a router says: which tokens reach which experts, and with what weight.

A router is an `nnx.Module` with an attribute `num_experts` whose call routes
one group of tokens and returns `(Slots | Assignment, Aux)`. The layer maps it
over groups and does the rest. Axes: `*b` any leading axes (groups), `m` tokens
of a group, `d` width, `e` experts, `s` slots of one expert.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

STATIC = {'static': True}


class Slots(NamedTuple):
  """Dense routing: every slot is a weighted sum of tokens, and back.

  Attributes:
    dispatch: weight of a token in a slot.
    combine: weight of a slot's output in a token's.
  """

  dispatch: Float[Array, '*b m e s']
  combine: Float[Array, '*b m e s']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Assignment:
  """Sparse routing: tokens want experts, and experts keep as many as fit.

  The output of a token is the sum of `gates` times the experts' outputs over
  the experts that keep it.

  Attributes:
    gates: weight of an expert's output; the gradient flows through it alone.
    priority: -inf where a token does not want the expert; where many want one,
      it keeps those of the highest priority, earlier tokens first among equals.
    capacity: tokens that an expert keeps; None: all that want it (dropless).
    choices: the most experts that one token may want; None: all.
  """

  gates: Float[Array, '*b m e']
  priority: Float[Array, '*b m e']
  capacity: int | None = dataclasses.field(default=None, metadata=STATIC)
  choices: int | None = dataclasses.field(default=None, metadata=STATIC)

  def wanted(self) -> Bool[Array, '*b m e']:
    """Tells which tokens want which experts."""
    return self.priority > -jnp.inf


class Steered(nnx.Param):
  """A parameter that a rule moves: its gradient is the step to take off it."""


class Aux(NamedTuple):
  """What a router adds to the training, as means over the tokens of a group.

  Attributes:
    losses: scalars by name, to be added to the loss as they are.
    metrics: scalars by name.
    steer: for a `Steered` parameter of the router, by name, the error whose
      sign it moves against, by `router.steer_rates[name]` a step. A sum over
      the tokens, not a mean: the layer adds those of all groups.
  """

  losses: dict[str, Array] = {}
  metrics: dict[str, Array] = {}
  steer: dict[str, Array] = {}


@runtime_checkable
class Router(Protocol):
  """What the MoE layer asks of a router.

  Called with tokens x (m, d) of one group, `mask=` (m,), False where a token is
  padding, which reaches no expert, or None; `key=` for routing noise, None at
  evaluation, which is free of noise; and what a caller of the layer passes on,
  such as a threshold. Returns `(Slots | Assignment, Aux)`.

  Some attributes are read where they are there: `across_examples` and
  `group_size` (see `MoE`), and `steer_rates`, the step of each `Steered`
  parameter by name.
  """

  num_experts: int
  __call__: Callable[..., tuple[Any, 'Aux']]


def mean_over_tokens(
  values: Float[Array, 'm *rest'], mask: Bool[Array, ' m'] | None
) -> Float[Array, '*rest']:
  """Returns the mean over the tokens that are not padding (0 if all are)."""
  if mask is None:
    return jnp.mean(values, axis=0)
  real = mask.reshape(-1, *(1,) * (values.ndim - 1))
  total = jnp.sum(jnp.where(real, values, 0), axis=0)
  return total / jnp.maximum(jnp.sum(mask), 1)
