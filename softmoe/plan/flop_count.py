"""FLOPs of a traced program, with every loop counted as often as it runs."""

import math
from collections.abc import Iterator
from typing import Any

import jax.extend.core
from jax.interpreters import partial_eval

from softmoe.moe.execution import rounds


def count(jaxpr: Any) -> tuple[int, bool]:
  """Returns the FLOPs of all matrix products, and whether the count is exact.

  A multiply and an add are two. A loop whose number of turns the data decide
  counts once, and makes the count a lower bound; dropless experts are taken to
  be wanted evenly, so that one round is enough. Of a conditional the dearest
  branch counts. What nothing reads does not: no compiler keeps it. A Pallas
  kernel counts for every program of its grid, the masked rows of its blocks
  included; where it loops over the rows of a group, groups are equally large.

  Args:
    jaxpr: what `jax.jit(...).trace(...).jaxpr` gives, of all devices.
  """
  whole = _jaxpr(jaxpr)
  read, _ = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars))
  return _count(read)


def _count(jaxpr: Any) -> tuple[int, bool]:
  total, exact = 0, True
  for equation in _jaxpr(jaxpr).eqns:
    flops, sure = _equation(equation)
    total, exact = total + flops, exact and sure
  return total, exact


def _equation(equation) -> tuple[int, bool]:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _dot(equation), True
  if name == 'pallas_call':
    return _kernel(equation)
  inner = [_count(jaxpr) for jaxpr in _inner(params)]
  if name == 'cond':
    return max(f for f, _ in inner), all(sure for _, sure in inner)
  flops, sure = sum(f for f, _ in inner), all(sure for _, sure in inner)
  if name == 'scan':
    return params['length'] * flops, sure
  if name == 'while' and rounds.SCOPE in str(equation.source_info.name_stack):
    return 0, sure  # at an even load
  if name == 'while':
    return flops, flops == 0
  if name == 'shard_map':  # its body is what one device does
    return params['mesh'].size * flops, sure
  return flops, sure


def _kernel(equation) -> tuple[int, bool]:
  flops, sure = _count(equation.params['jaxpr'])
  flops *= math.prod(equation.params['grid_mapping'].grid)
  if sure or not flops:
    return flops, sure
  # Sums over the rows of a group, one result for each group.
  rows, groups = equation.invars[-1].aval, equation.outvars[-1].aval
  step = _depth(next(_dots(equation.params['jaxpr'])))
  return flops * -(-rows.shape[0] // (groups.shape[0] * step)), True


def _dots(jaxpr: Any) -> Iterator[Any]:
  """Yields all matrix products in a program."""
  for equation in _jaxpr(jaxpr).eqns:
    if equation.primitive.name == 'dot_general':
      yield equation
    for inner in _inner(equation.params):
      yield from _dots(inner)


def _dot(equation) -> int:
  return 2 * math.prod(equation.outvars[0].aval.shape) * _depth(equation)


def _depth(dot) -> int:
  """Returns the number of products that a product of matrices sums."""
  (contracted, _), _ = dot.params['dimension_numbers']
  left = dot.invars[0].aval.shape
  return math.prod(left[i] for i in contracted)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  for value in params.values():
    values = value if isinstance(value, (tuple, list)) else (value,)
    yield from (v for v in values if _is_jaxpr(v))


def _is_jaxpr(value: Any) -> bool:
  return isinstance(value, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))


def _jaxpr(value: Any) -> Any:
  return getattr(value, 'jaxpr', value)
