"""The split syntax: `train`, `train[:90%]`, `train[-1000:]`."""

import re
from collections.abc import Iterable

from softmoe.data.images import source as source_lib
from softmoe.errors import UserError

_BOUND = r'(-?\d+%?)?'
_SPLIT = re.compile(rf'(?P<name>[\w.-]+)(\[{_BOUND}:{_BOUND}\])?')


def base_name(split: str) -> str:
  """Returns the split that `split` is a slice of: `train` of `train[:90%]`.

  Raises:
    UserError: the split is not a name with at most one slice.
  """
  return _match(split)['name']


def take(source: source_lib.Source, split: str) -> source_lib.Source:
  """Returns the part of a whole split that the slice in `split` asks for.

  A bound is a number of examples or a percentage, which is rounded to the
  nearest example; a negative bound counts from the end.

  Raises:
    UserError: the slice holds no example.
  """
  match = _match(split)
  start = _position(match[3] or '0%', len(source))
  stop = _position(match[4] or '100%', len(source))
  if start >= stop:
    raise UserError(
      'split', split, f'a slice with examples, of {len(source)} in all'
    )
  if (start, stop) == (0, len(source)):
    return source
  return source_lib.Subset(source, start, stop)


def unknown(split: str, known: Iterable[str]) -> UserError:
  """Returns the error for a split that a source does not have."""
  return UserError('split', split, f'the source has {sorted(known)}')


def _match(split: str) -> re.Match[str]:
  match = _SPLIT.fullmatch(split)
  if match is None:
    raise UserError('split', split, "a form such as 'train' or 'train[:90%]'")
  return match


def _position(bound: str, size: int) -> int:
  """Returns a bound as an index between 0 and `size`."""
  if bound.endswith('%'):
    index = round(size * int(bound[:-1]) / 100)
  else:
    index = int(bound)
  return min(max(index + size if bound.startswith('-') else index, 0), size)
