"""What a Pallas kernel computes and moves: of its grid and its tiles.

On a TPU programs run one after the other, and a block stays on the chip until
the grid asks for another. On a GPU programs that run at the same time, one a
processor, share what they read: a tile that several of them ask for leaves the
main memory once, and again for those that come after them. Which tiles these
are follows from where their indices come from: from the place in the grid, or
from a table that is read at that place, such as the expert of a block of rows.
Tables are taken to go evenly through what they list. Rows that a tile only
masks count.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.extend.core
from jax import numpy as jnp
from jax.interpreters import partial_eval

# An axis of the grid, and whether by way of a table.
Follows = frozenset[tuple[int, bool]]
_LOADS, _STORES = ('get', 'masked_load'), ('swap', 'masked_swap')


class Step(NamedTuple):
  """An equation of a kernel.

  Attributes:
    equation: of the body, or of a loop in it.
    turns: how often a program runs it.
    follows: from a value that it reads to what along the grid that follows.
  """

  equation: Any
  turns: int
  follows: Callable[[Any], Follows]


def flops(kernel: Any) -> tuple[int, bool]:
  """Returns the FLOPs of a `pallas_call`, and whether the count is exact.

  Where a kernel with a table of groups loops over the rows of a group, groups
  are taken to be equally large. Another such loop counts once, not exactly.
  """
  names = [step.equation.primitive.name for step in _steps(kernel)]
  total = sum(step.turns * dot_flops(step.equation) for step in _dots(kernel))
  sure = 'while' not in names or _has_groups(kernel)
  return total * math.prod(_grid(kernel)), sure or not total


def num_bytes(kernel: Any, processors: int) -> int:
  """Returns the bytes that a `pallas_call` reads and writes.

  Args:
    kernel: equation of a traced program.
    processors: programs that run at the same time.
  """
  waves = max(1.0, math.prod(_grid(kernel)) / processors)
  extents = _extents(_grid(kernel), processors)
  touched = (
    step.turns * _different_bytes(step, _grid(kernel), extents)
    for step in _steps(kernel)
    if step.equation.primitive.name in _LOADS + _STORES
  )
  return round(waves * sum(touched))


def reread_bytes(kernel: Any) -> int:
  """Returns the bytes of blocks that a TPU reads again, beyond once each.

  The grid, whose last axis is the fastest, goes through an array once more for
  every step of an outer axis that the array does not follow.
  """
  mappings = kernel.params['grid_mapping'].block_mappings
  return sum(
    (_passes(mapping.index_map_jaxpr.jaxpr, _grid(kernel)) - 1)
    * mapping.array_aval.size
    * mapping.array_aval.dtype.itemsize
    for mapping in mappings
  )


def _passes(index_map: Any, grid: tuple[int, ...]) -> int:
  """Returns how often a grid goes through an array with this index map."""
  _, used = partial_eval.dce_jaxpr(index_map, [True] * len(index_map.outvars))
  axes = [axis for axis in range(len(grid)) if used[axis]]
  outer = range(max(axes, default=0))
  return math.prod(grid[axis] for axis in outer if axis not in axes)


def dot_flops(dot: Any) -> int:
  """Returns the FLOPs of a matrix product; a multiply and an add are two."""
  return 2 * math.prod(dot.outvars[0].aval.shape) * _depth(dot)


def _depth(dot: Any) -> int:
  """Returns the number of products that a product of matrices sums."""
  (contracted, _), _ = dot.params['dimension_numbers']
  left = dot.invars[0].aval.shape
  return math.prod(left[i] for i in contracted)


def _grid(kernel: Any) -> tuple[int, ...]:
  return kernel.params['grid_mapping'].grid


def _extents(grid: tuple[int, ...], processors: int) -> list[float]:
  """Returns how far programs of the same time reach along each axis.

  They follow each other along the first axis, then along the second.
  """
  strides = [math.prod(grid[:i]) for i in range(len(grid))]
  return [
    min(float(size), max(1.0, processors / stride))
    for size, stride in zip(grid, strides, strict=True)
  ]


def _different_bytes(
  step: Step, grid: tuple[int, ...], extents: list[float]
) -> float:
  """Returns the bytes that programs of the same time touch, each once."""
  ref, indices = step.equation.invars[0], _indices(step.equation)
  sizes = [getattr(index, 'size', 1) for index in indices]
  numbers = {axis: extents[axis] for axis, _ in step.follows(ref)}
  for dim, size, index in zip(ref.aval.shape, sizes, indices, strict=True):
    for axis, listed in step.follows(getattr(index, 'start', index)):
      number, tiles = extents[axis], -(-dim // size)
      if listed:  # evenly, by a table as long as the axis
        number = min(number, tiles, 1 + (number - 1) * tiles / grid[axis])
      numbers[axis] = max(numbers.get(axis, 1), number)
  tile = math.prod(sizes) * ref.aval.dtype.itemsize
  return float(tile * math.prod(numbers.values()))


def _indices(access: Any) -> tuple[Any, ...]:
  """Returns an index for each dimension of what is loaded or stored."""
  params, flat = access.params, access.invars
  if 'args_tree' in params:
    transforms = params['args_tree'].unflatten(flat)[1]
  else:
    tree = params['tree']
    transforms = tree.unflatten(flat[len(flat) - tree.num_leaves :])
  return transforms[-1].indices


def _dots(kernel: Any, even: bool = True) -> Iterator[Step]:
  steps = _steps(kernel, even)
  return (s for s in steps if s.equation.primitive.name == 'dot_general')


def _steps(kernel: Any, even: bool = True) -> Iterator[Step]:
  """Yields all equations; `even`: loops over the rows of a group turn so."""
  jaxpr = kernel.params['jaxpr']
  arrays = (*kernel.invars, *kernel.outvars)
  every = frozenset((axis, False) for axis in range(len(_grid(kernel))))
  # Where the grid picks the block of an array, each program has its own.
  inputs = [
    every if ref.aval.shape != array.aval.shape else frozenset()
    for ref, array in zip(jaxpr.invars, arrays, strict=False)
  ]
  turns = _even_turns(kernel) if even and _has_groups(kernel) else 1
  yield from _walk(jaxpr, inputs, 1, turns)


def _has_groups(kernel: Any) -> bool:
  """Tells whether the first operand is a table, as long as there are groups."""
  first = kernel.invars[0].aval
  return first.ndim == 1 and jnp.issubdtype(first.dtype, jnp.integer)


def _even_turns(kernel: Any) -> int:
  """Returns the steps over the rows of one of equally large groups."""
  dot = next(_dots(kernel, even=False), None)
  if dot is None:
    return 1
  rows, groups = kernel.invars[-1].aval.shape[0], kernel.invars[0].aval.shape[0]
  return -(-rows // (groups * _depth(dot.equation)))


def _walk(
  jaxpr: Any, inputs: list[Follows], turns: int, even: int
) -> Iterator[Step]:
  known = dict(zip(jaxpr.invars, inputs, strict=False))

  def follows(value: Any) -> Follows:
    is_variable = isinstance(value, jax.extend.core.Var)
    return known.get(value, frozenset()) if is_variable else frozenset()

  for equation in jaxpr.eqns:
    yield Step(equation, turns, follows)
    found = [follows(value) for value in equation.invars]
    for inner, times in _inner(equation, even):
      last = found[len(found) - len(inner.invars) :]
      yield from _walk(inner, last, turns * times, even)
    known |= dict.fromkeys(equation.outvars, _result(equation, found))


def _result(equation: Any, found: list[Follows]) -> Follows:
  """Returns what the results of an equation follow from."""
  if equation.primitive.name == 'program_id':
    return frozenset([(equation.params['axis'], False)])
  union = frozenset().union(*found)
  if equation.primitive.name in _LOADS:
    return frozenset((axis, True) for axis, _ in union)
  return union


def _inner(equation: Any, even: int) -> Iterator[tuple[Any, int]]:
  """Yields what an equation runs, and how often."""
  name, params = equation.primitive.name, equation.params
  if name == 'while':
    yield params['body_jaxpr'].jaxpr, even
    return
  times = params['length'] if name == 'scan' else 1
  for jaxpr in jaxprs(params):
    yield getattr(jaxpr, 'jaxpr', jaxpr), times


def jaxprs(params: dict[str, Any]) -> Iterator[Any]:
  """Yields the programs among the parameters of an equation."""
  kinds = jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr
  for value in params.values():
    values = value if isinstance(value, (tuple, list)) else (value,)
    yield from (v for v in values if isinstance(v, kinds))
