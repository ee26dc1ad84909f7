"""Examples from all over a split: some sources have a class after the other."""

import dataclasses
import itertools
from typing import Any

import numpy as np
from jaxtyping import Int

from softmoe.tasks import task as task_lib

_WHOLE = 1 << 40  # rows of a batch that any split fits into
_POWERS = 1 << np.arange(40)
_PARTS = 64  # of what may be the size of a split

Batch = dict[str, np.ndarray]


def read(
  task: task_lib.Task, split: str, count: int, together: int = 1
) -> Batch:
  """Returns at most `count` examples at equal distances, and padding.

  Where a split has batches of several lengths, it is those of the most common.

  Args:
    task: whose `eval_batches` they are of; the size of its batches is ignored.
    split: any of its source.
    count: a multiple of `together`.
    together: neighbouring examples that stay neighbours.

  Raises:
    UserError: the split cannot be read.
  """
  data = dataclasses.replace(task.config.data, eval_batch_size=_WHOLE)
  whole: Any = type(task)(dataclasses.replace(task.config, data=data))
  there = lambda rows: [
    int(np.sum(batch['mask'])) for batch in whole.eval_batches(split, rows)
  ]
  found = there(_POWERS)
  fullest = int(np.argmax(found))
  # There are more examples than this and, but for a lone one, at most twice as
  # many: how many, the probes tell to a 64th.
  least = 1 << found[fullest] >> 1
  probes = least + least * np.arange(_PARTS) // _PARTS
  size = least + least * there(probes)[fullest] // _PARTS
  batches = whole.eval_batches(split, _spread(size, count, together))
  return next(itertools.islice(batches, fullest, None))


def cut(found: Batch, size: int) -> list[Batch]:
  """Returns examples in batches, the last of which is filled up with zeros.

  Args:
    found: examples, and padding behind them.
    size: of a batch.
  """
  count = int(np.sum(found['mask']))
  return [
    {name: _filled(v[i : i + size], size) for name, v in found.items()}
    for i in range(0, count, size)
  ]


def _spread(size: int, count: int, together: int) -> Int[np.ndarray, ' n']:
  """Returns `count` rows at equal distances below `size`, or all and more."""
  groups = count // together
  starts = np.arange(groups) * max(size // together, groups) // groups
  return (together * starts[:, None] + np.arange(together)).ravel()


def _filled(values: np.ndarray, size: int) -> np.ndarray:
  rest = np.zeros((size - len(values), *values.shape[1:]), values.dtype)
  return np.concatenate([values, rest])
