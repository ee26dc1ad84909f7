"""Examples from all over a split: some sources have a class after the other."""

import dataclasses
import itertools
from typing import Any

import numpy as np
from jaxtyping import Int

from softmoe.tasks import task as task_lib

_WHOLE = 1 << 40  # rows of a batch that any split fits into
_PROBES = 1 << np.arange(40)


def read(
  task: task_lib.Task, split: str, count: int, together: int
) -> dict[str, np.ndarray]:
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
  found = [
    int(np.sum(batch['mask'])) for batch in whole.eval_batches(split, _PROBES)
  ]
  fullest = int(np.argmax(found))
  # Of 2, 4, 8 ... examples, no fewer than there are.
  rows = _spread(1 << found[fullest], count, together)
  batches = whole.eval_batches(split, rows)
  return next(itertools.islice(batches, fullest, None))


def _spread(size: int, count: int, together: int) -> Int[np.ndarray, ' n']:
  """Returns `count` rows at equal distances below `size`, or all and more."""
  groups = count // together
  distance = max(size // count, 1) * together
  starts = distance * np.arange(groups)
  return (starts[:, None] + np.arange(together)).ravel()
