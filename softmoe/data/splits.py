"""Which examples a split holds.

The syntax is `train`, `train[:90%]`, `train[-1000:]`. Where a source has but
one split, or no order, `fixed_order` makes any slice of it a fair sample.
"""

import contextlib
import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Integer

from softmoe.config import DataConfig
from softmoe.errors import UserError, naming

_BOUND = r'(-?\d+%?)?'
_SPLIT = re.compile(rf'(?P<name>[\w.-]+)(\[{_BOUND}:{_BOUND}\])?')


def base_name(split: str) -> str:
  """Returns the split that `split` is a slice of: `train` of `train[:90%]`.

  Raises:
    UserError: the split is not a name with at most one slice.
  """
  return _match(split)['name']


def indices(split: str, size: int) -> range:
  """Returns which examples of a whole split the slice in `split` asks for.

  A bound is a number of examples or a percentage, which is rounded to the
  nearest example; a negative bound counts from the end.

  Args:
    split: a split or a slice of it.
    size: number of examples of the whole split.

  Raises:
    UserError: the slice holds no example, or as `base_name`.
  """
  match = _match(split)
  start = _position(match[3] or '0%', size)
  stop = _position(match[4] or '100%', size)
  if start >= stop:
    raise UserError('split', split, f'a slice with examples, of {size} in all')
  return range(start, stop)


def unknown(split: str, known: Iterable[str]) -> UserError:
  """Returns the error for a split that a source does not have."""
  return UserError('split', split, f'the source has {sorted(known)}')


def named(
  config: DataConfig, split: str
) -> contextlib.AbstractContextManager[None]:
  """Lets an error of a split name the field of the config that asks for it."""
  fields = {
    config.eval_split: 'config.data.eval_split',
    config.train_split: 'config.data.train_split',
  }
  return naming({'split': fields.get(split, 'split')})


def fixed_order(
  size: int, seed: int | tuple[int, ...] = 0
) -> Integer[np.ndarray, ' n']:
  """Returns a permutation of `range(size)` that no release of numpy changes.

  It sorts the raw output of a bit generator, a stream that numpy keeps fixed
  (NEP 19); the output of `Generator.permutation` may change.
  """
  return np.argsort(np.random.PCG64(seed).random_raw(size), kind='stable')


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
