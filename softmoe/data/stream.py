"""Batches: a pure function of the seed and the step, whatever the processes.

An example is any dict of arrays that a function loads by its index, each array
of the same shape and type in all examples. A batch stacks them.

All randomness is attached to a row of one endless stream (shuffle, then repeat,
then load) before a process picks its rows. So the global batch of b rows at
step s is rows s * b to (s + 1) * b of that stream on any number of processes,
whichever of these rows each of them reads, and resuming is to start reading at
another row.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Integer

from softmoe.config import DataConfig

Batch = dict[str, np.ndarray]
Example = Mapping[str, np.ndarray | np.generic]
EvalLoad = Callable[[int], Example]
TrainLoad = Callable[[int, np.random.Generator], Example]
Rows = Integer[np.ndarray, ' n']

# "Forever", yet so small that the number of rows fits in 63 bits.
FOREVER = 2**62


def train_batches(
  config: DataConfig,
  size: int,
  load: TrainLoad,
  *,
  seed: int,
  start_step: int = 0,
  rows: Rows | None = None,
) -> Iterator[Batch]:
  """Returns some rows of every global batch from `start_step` on.

  The examples are reshuffled in each epoch, and a batch may span two epochs.

  Args:
    config: the checked config.
    size: number of examples.
    load: from an index below `size` and a generator for what is random in it to
      an example; called from several threads.
    seed: of the order and of the generators.
    start_step: number of batches to leave out.
    rows: which rows of a batch, such as `prefetch.local_rows` says; None: all.

  Returns:
    An endless iterator over dicts of arrays, each of shape (n, *shape of an
    example's). What `load` raises comes from it.
  """
  local = ascending(config.batch_size, rows)
  order_seed, load_seed = _seeds(seed)

  def load_batch(step: int) -> Batch:
    rngs = _Generators(load_seed)
    numbers = [step * config.batch_size + row for row in local]
    return _stack(
      [load(_shuffled(n, size, order_seed), rngs.of_row(n)) for n in numbers]
    )

  steps = grain.MapDataset.range(start_step, FOREVER // config.batch_size)
  return _read(steps.map(load_batch), config)


def of_steps(
  config: DataConfig, load: Callable[[int], Batch], steps: range
) -> Iterator[Batch]:
  """Returns the batches of some steps, for what makes batches of its own.

  Args:
    config: the checked config.
    load: from a step to its batch; called from several threads.
    steps: in their order; `FOREVER` ends it where nothing does.
  """
  indices = grain.MapDataset.range(steps.start, steps.stop)
  return _read(indices.map(load), config)


def eval_batches(
  config: DataConfig, size: int, load: EvalLoad, *, rows: Rows | None = None
) -> Iterator[Batch]:
  """Returns some rows of each global batch of one pass, in order.

  The last global batch is filled up with zeros, so that every process gets the
  same number of batches, each of the same shape.

  Args:
    config: the checked config.
    size: number of examples.
    load: from an index below `size` to an example, which has no 'mask'; called
      from several threads.
    rows: as in `train_batches`.

  Returns:
    An iterator over dicts as in `train_batches`, and in them 'mask': float32
    (n,), 1 for an example and 0 for padding.
  """
  local = ascending(config.eval_batch_size, rows)

  def load_batch(step: int) -> Batch:
    indices = [step * config.eval_batch_size + row for row in local]
    examples = [load(index) for index in indices if index < size]
    mask = np.arange(len(local)) < len(examples)
    if not mask.all():
      # All rows of a process may be padding: then any example says the shapes.
      blank = _zeros_like(examples[0] if examples else load(0))
      examples += [blank] * (len(local) - len(examples))
    return _stack(examples) | {'mask': mask.astype(np.float32)}

  steps = -(-size // config.eval_batch_size)
  return _read(grain.MapDataset.range(steps).map(load_batch), config)


def ascending(size: int, rows: Rows | None) -> list[int]:
  """Returns the rows in ascending order, so that padding comes last."""
  return list(range(size)) if rows is None else sorted(rows.tolist())


def _shuffled(row: int, size: int, seed: int) -> int:
  """Returns which example a row of the stream is: each once in an epoch.

  It is the order of grain's `shuffle` and `repeat`, which spend longer on
  accounts of their own than a small image takes to load.
  """
  epoch, place = divmod(row, size)
  return grain.experimental.index_shuffle(
    place, max_index=size - 1, seed=(seed + epoch) % 2**32, rounds=4
  )


class _Generators:
  """The generator of each row of the stream, of which one is in use at a time.

  Philox is a function of its key, the seed, and of a counter, whose upper half
  is the row: to set it takes a tenth of the time of a new generator.
  """

  def __init__(self, seed: int):
    self._bits = np.random.Philox(key=seed)
    self._state: Any = self._bits.state
    self._generator = np.random.Generator(self._bits)

  def of_row(self, row: int) -> np.random.Generator:
    """Returns the generator, which is at the start of `row` now."""
    self._state['state']['counter'][:] = 0, 0, row, 0
    self._bits.state = self._state
    return self._generator


def _seeds(seed: int) -> tuple[int, int]:
  """Returns independent seeds for the order and for the generators."""
  order, load = np.random.SeedSequence(seed).generate_state(2)
  return int(order), int(load)


def _stack(examples: list[Example]) -> Batch:
  return {
    name: np.stack([example[name] for example in examples])
    for name in examples[0]
  }


def _zeros_like(example: Example) -> Example:
  return {name: np.zeros_like(array) for name, array in example.items()}


def _read(
  dataset: grain.MapDataset[Batch], config: DataConfig
) -> Iterator[Batch]:
  """Iterates, with `config.threads` threads that each prepare a batch ahead.

  So the host holds at most `config.threads` batches beside the one in use.
  """
  options = grain.ReadOptions(
    num_threads=config.threads, prefetch_buffer_size=config.threads
  )
  return iter(dataset.to_iter_dataset(options))
