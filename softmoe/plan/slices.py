"""The TPU slices that are offered, by chip.

Sizes are in chips, from the pages of Google that `softmoe.costs.chips` names,
looked up in 2026. A compiler would take others too, and for some it crashes.
"""

from softmoe.costs import chips
from softmoe.errors import UserError

_SQUARES = ('2x2', '4x4', '4x8', '8x8', '8x16', '16x16')
_SMALL = ('2x2', '2x4', *_SQUARES[1:])
_FLAT = {
  'v2': _SQUARES,
  'v3': (*_SQUARES, '16x32', '32x32'),
  'v5e': _SMALL,
  'v6e': _SMALL,
}
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')  # and multiples of 4
_MOST = {'v4': 4096, 'v5p': 6144, 'tpu7x': 9216}


def check(target: str, chip: chips.Chip, shape: tuple[int, ...]) -> None:
  """Raises a UserError that lists the slices of a TPU if this is none.

  Args:
    target: as the user wrote it.
    chip: of a torus.
    shape: sizes of the torus, in any order.
  """
  if chip.name in _FLAT:
    named, others, fits = _FLAT[chip.name], '', False
  else:
    most = _MOST[chip.name]
    named, others = _CUBES, f' or multiples of 4 up to {most:,} chips'
    fits = len(shape) == 3 and _is_cubes(shape, most)
  if not fits and sorted(shape) not in map(_sizes, named):
    expected = f'a slice of the {chip.name}: {", ".join(named)}{others}'
    raise UserError('--target', target, expected)


def _is_cubes(shape: tuple[int, ...], most: int) -> bool:
  """Tells whether cubes of 4 x 4 x 4 chips make that shape."""
  a, b, c = shape
  return all(n > 0 and n % 4 == 0 for n in shape) and a * b * c <= most


def _sizes(name: str) -> list[int]:
  return sorted(map(int, name.split('x')))
