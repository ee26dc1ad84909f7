"""FLOPs of a traced program, with every loop counted as often as it runs."""

import math
from collections.abc import Callable
from typing import Any

from jax.interpreters import partial_eval

from softmoe.moe.execution import rounds
from softmoe.plan import kernels

# What an equation costs, and whether that is exact; None: what is in it does.
Price = Callable[[Any], tuple[int, bool] | None]


def flops(equation: Any) -> tuple[int, bool] | None:
  """Returns the FLOPs of an equation that multiplies matrices."""
  name = equation.primitive.name
  if name == 'dot_general':
    return kernels.dot_flops(equation), True
  if name == 'ragged_dot_general':
    return _ragged_flops(equation), True
  return kernels.flops(equation) if name == 'pallas_call' else None


def count(
  jaxpr: Any, price: Price = flops, *, worst: bool = False
) -> tuple[int, bool]:
  """Returns what all equations cost, and whether the count is exact.

  A loop whose number of turns the data decide counts once, and makes the count
  a lower bound. Of a conditional the dearest branch counts. What nothing reads
  does not: no compiler keeps it.

  Args:
    jaxpr: what `jax.jit(...).trace(...).jaxpr` gives, of all devices.
    price: of an equation.
    worst: dropless experts need as many rounds as there may be; else they are
      wanted evenly.
  """
  whole, total, exact = getattr(jaxpr, 'jaxpr', jaxpr), 0, True
  read, _ = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars))
  for equation in read.eqns:
    cost, sure = price(equation) or _inside(equation, price, worst)
    total, exact = total + cost, exact and sure
  return total, exact


def _inside(equation: Any, price: Price, worst: bool) -> tuple[int, bool]:
  name, params = equation.primitive.name, equation.params
  inner = [count(each, price, worst=worst) for each in kernels.jaxprs(params)]
  costs, sure = [cost for cost, _ in inner], all(sure for _, sure in inner)
  if name == 'cond':
    return max(costs), sure
  if name == 'while':
    return _loop(equation, sum(costs), sure, worst)
  if name == 'scan':
    return params['length'] * sum(costs), sure
  if name == 'shard_map':  # its body is what one device does
    return params['mesh'].size * sum(costs), sure
  return sum(costs), sure


def _loop(
  equation: Any, cost: int, sure: bool, worst: bool
) -> tuple[int, bool]:
  """Returns the cost of a `while`, given that of a turn."""
  found = rounds.counts(str(equation.source_info.name_stack))
  if found is None:
    return cost, cost == 0
  return (found[worst] - 1) * cost, sure


def _ragged_flops(equation: Any) -> int:
  """Returns the FLOPs of every row times one matrix, that of its group."""
  rows, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  return 2 * math.prod(rows) * result[-1]
