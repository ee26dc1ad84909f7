"""What a router says: which tokens reach which experts, and with what weight.

A router is an `nnx.Module` with an attribute `num_experts` whose call routes
one group of tokens and returns `(Slots | Assignment, Aux)`. The layer maps it
over groups and does the rest. Axes: `*b` any leading axes (groups), `m` tokens
of a group, `d` width, `e` experts, `s` slots of one expert, `k` width of what
logits are products of.
"""

import abc
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import (
  TYPE_CHECKING,
  Any,
  ClassVar,
  NamedTuple,
  Protocol,
  runtime_checkable,
)

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe.errors import UserError

STATIC = {'static': True}
# Experts of a token, where a router has neither bound nor expectation.
EXPECTED = 2.0
if TYPE_CHECKING:
  Shapes = Array
else:  # What checks types in tests must let pass what `jax.eval_shape` returns.
  Shapes = Array | jax.ShapeDtypeStruct


class Slots(NamedTuple):
  """Dense routing: every slot is a weighted sum of tokens, and back.

  Attributes:
    dispatch: weight of a token in a slot.
    combine: weight of a slot's output in a token's.
  """

  dispatch: Float[Array, '*b m e s']
  combine: Float[Array, '*b m e s']

  @property
  def num_experts(self) -> int:
    """Experts that the slots are of."""
    return self.dispatch.shape[-2]

  def rows_per_token(self) -> float:
    """Returns how many experts run for a token, from shapes alone."""
    tokens, *slots = self.dispatch.shape[-3:]
    return math.prod(slots) / tokens


class Factors(NamedTuple):
  """`Slots` by what their weights are made of, where these would be too many.

  With the logits `tokens @ slots`, dispatch is their softmax over the tokens
  that are not masked, and combine their softmax over all slots.

  Attributes:
    tokens: float32, of each group.
    slots: float32, of all groups.
    mask: False where a token weighs nothing in any slot; None: all weigh.
  """

  tokens: Float[Array, '*b m k']
  slots: Float[Array, 'k e s']
  mask: Bool[Array, '*b m'] | None = None

  @property
  def num_experts(self) -> int:
    """Experts that the slots are of."""
    return self.slots.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Assignment:
  """Sparse routing: tokens want experts, and experts keep as many as fit.

  The output of a token is the sum of `gates` times the experts' outputs over
  the experts that keep it. All but the arrays is static: what a router costs
  follows from `jax.eval_shape`.

  Attributes:
    gates: weight of an expert's output; the gradient flows through it alone.
    priority: -inf where a token does not want the expert; where many want one,
      it keeps those of the highest priority, earlier tokens first among equals.
    capacity: tokens that an expert keeps; None: all that want it (dropless).
    choices: the most experts that one token may want; None: all.
    adaptive: whether tokens may want fewer than `choices`.
    expected: experts that run for a token on average, where the router knows
      better than `capacity` and `choices` tell; None: it does not.
    granted: the pairs that experts keep; routers leave it to `MoE.route`.
  """

  gates: Float[Shapes, '*b m e']
  priority: Float[Shapes, '*b m e']
  capacity: int | None = dataclasses.field(default=None, metadata=STATIC)
  choices: int | None = dataclasses.field(default=None, metadata=STATIC)
  adaptive: bool = dataclasses.field(default=False, metadata=STATIC)
  expected: float | None = dataclasses.field(default=None, metadata=STATIC)
  granted: Bool[Shapes, '*b m e'] | None = None

  @property
  def num_experts(self) -> int:
    """Experts that tokens choose from."""
    return self.gates.shape[-1]

  @property
  def dropless(self) -> bool:
    """Whether experts keep every token that wants them."""
    return self.capacity is None

  @property
  def is_adaptive(self) -> bool:
    """Whether tokens may differ in how many experts they want."""
    return self.adaptive or self.choices is None

  def wanted(self) -> Bool[Array, '*b m e']:
    """Tells which tokens want which experts."""
    return self.priority > -jnp.inf

  def mean_choices(self) -> float:
    """Returns the experts of a token that a buffer is made for."""
    if self.choices is not None:
      mean = float(self.choices)
    elif self.dropless and self.expected is None:
      mean = EXPECTED
    else:
      mean = self.rows_per_token()
    return min(mean, float(self.priority.shape[-1]))

  def rows_per_token(self) -> float:
    """Returns how many experts run for a token; without a bound, all."""
    tokens, num_experts = self.priority.shape[-2:]
    if self.expected is not None:
      return self.expected
    if self.choices is not None:
      return float(self.choices)
    if self.capacity is None:
      return float(num_experts)
    return self.capacity * num_experts / tokens


class Rule(abc.ABC):
  """How a step moves a `Steered` parameter; hashable.

  Attributes:
    mean: whether the statistic of a batch is the mean of those of its groups,
      or their sum.
  """

  mean: ClassVar[bool]

  @abc.abstractmethod
  def __call__(self, value: Array, statistic: Array) -> Array:
    """Returns the new value, given the statistic of the whole batch."""


@dataclasses.dataclass(frozen=True)
class StepBySign(Rule):
  """Moves against the sign of an error, by `rate`.

  The errors of all groups are added, so that whole numbers that cancel are an
  error of exactly 0.
  """

  rate: float
  mean: ClassVar[bool] = False

  def __call__(self, value: Array, statistic: Array) -> Array:
    """Returns the new value."""
    return value - self.rate * jnp.sign(statistic)


@dataclasses.dataclass(frozen=True)
class SetTo(Rule):
  """Becomes the statistic."""

  mean: ClassVar[bool] = True

  def __call__(self, value: Array, statistic: Array) -> Array:
    """Returns the new value."""
    return statistic


@dataclasses.dataclass(frozen=True)
class MoveAverage(Rule):
  """Becomes the running mean of the statistic."""

  decay: float
  mean: ClassVar[bool] = True

  def __call__(self, value: Array, statistic: Array) -> Array:
    """Returns the new value."""
    return self.decay * value + (1 - self.decay) * statistic


class Steered(nnx.Param):
  """A parameter that a rule moves once a step, and not the gradient.

  What takes its place as the gradient is the statistic that the rule reads; see
  `optim.steered`, which applies it.
  """

  def __init__(self, value: Any, *, rule: Rule, **metadata: Any):
    super().__init__(value, rule=rule, **metadata)


def rule(router: Any, name: str) -> Rule:
  """Returns the rule of a router's parameter.

  Raises:
    UserError: no rule moves it.
  """
  parameter = getattr(router, name, None)
  if not isinstance(parameter, Steered):
    given, expected = type(parameter).__name__, 'a `routing.Steered` parameter'
    raise UserError(f'router.{name}', given, expected)
  return parameter.get_metadata('rule')


class Aux(NamedTuple):
  """What a router adds to the training, as means over the tokens of a group.

  Attributes:
    losses: scalars by name, to be added to the loss as they are.
    metrics: scalars by name.
    steer: for a `Steered` parameter of the router, by name, the statistic that
      its rule reads, of this group: where the rule is by sum, a sum over the
      tokens, not a mean.
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

  The attributes `across_examples` with `group_size`, and `segment` with `width`
  and `slots_per_expert`, are read where they are there; see `MoE`. One with
  `segment` gets no token ids. A method `factors`, called with the tokens
  (g, m, d) and the `mask=` of all groups of a device, and the options of a
  call, returns `Factors` of what the router says of them, or None where that
  is better said by `Slots`. It has no losses, and is not asked under `segment`.
  """

  num_experts: int
  __call__: Callable[..., tuple[Any, 'Aux']]


def takes_token_ids(router: Any) -> bool:
  """Tells whether a router's call takes `token_ids`."""
  # What wraps a router says it of the router.
  told = getattr(router, 'takes_token_ids', None)
  named = 'token_ids' in inspect.signature(router.__call__).parameters
  return named if told is None else told


def traced(router: Router, x: Any, **options: Any) -> Slots | Assignment:
  """Returns what a router says of a group, for its static fields alone.

  Args:
    router: any.
    x: tokens of a group, or their shape and type.
    **options: of the call, such as a key. Token ids may be left out.
  """
  if takes_token_ids(router):
    options = {'token_ids': jnp.zeros(x.shape[0], jnp.int32)} | options
  found = []
  jax.eval_shape(lambda x: found.append(router(x, **options)[0]), x)
  return found[0]


def mean_over_tokens(
  values: Float[Array, 'm *rest'], mask: Bool[Array, ' m'] | None
) -> Float[Array, '*rest']:
  """Returns the mean over the tokens that are not padding (0 if all are)."""
  if mask is None:
    return jnp.mean(values, axis=0)
  real = mask.reshape(-1, *(1,) * (values.ndim - 1))
  total = jnp.sum(jnp.where(real, values, 0), axis=0)
  return total / jnp.maximum(jnp.sum(mask), 1)
