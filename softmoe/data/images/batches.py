"""Batches: a pure function of the seed and the step, whatever the processes.

All randomness is attached to a row of one endless stream (shuffle, then repeat,
then augment) before a process picks its rows. So the global batch of b rows at
step s is rows s * b to (s + 1) * b of that stream on any number of processes,
whichever of these rows each of them reads, and resuming is to start reading at
another row.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Integer

from softmoe.data.images import source as source_lib
from softmoe.data.images import sources, transforms
from softmoe.data.images.config import ImageDataConfig
from softmoe.errors import UserError

Batch = dict[str, np.ndarray]
Rows = Integer[np.ndarray, ' n']

# "Forever", yet so small that the number of rows fits in 63 bits.
_EPOCHS = 2**31


def train_batches(
  config: ImageDataConfig,
  *,
  seed: int,
  start_step: int = 0,
  rows: Rows | None = None,
) -> Iterator[Batch]:
  """Returns some rows of every global batch from `start_step` on.

  The examples are reshuffled in each epoch, and a batch may span two epochs.

  Args:
    config: the checked config.
    seed: of the order and of the augmentation.
    start_step: number of batches to leave out.
    rows: which rows of a batch, such as `prefetch.local_rows` says; None: all.

  Returns:
    An endless iterator over {'image': float32 (n, h, w, c), 'label': int32
    (n,)}.

  Raises:
    UserError: the config, the source or one of its examples is wrong; for an
      example it is raised by the iterator.
  """
  local = _check_rows('batch_size', config.batch_size, rows)
  source = _open(config, config.train_split)
  transform = transforms.train_transform(config)
  order_seed, transform_seed = _seeds(seed)

  def load(index: int, rng: np.random.Generator) -> source_lib.Example:
    example = source[index]
    image = transform(example['image'], rng)
    return {'image': image, 'label': example['label']}

  # A range, since grain spends longer on a source than on the rest together.
  stream = grain.MapDataset.range(len(source)).shuffle(order_seed)
  stream = stream.repeat(_EPOCHS).random_map(load, seed=transform_seed)

  def load_batch(step: int) -> Batch:
    first = step * config.batch_size
    examples: list[Any] = [stream[first + row] for row in local]
    return _stack(config, examples)

  steps = grain.MapDataset.range(start_step, len(stream) // config.batch_size)
  return _read(steps.map(load_batch), config)


def eval_batches(
  config: ImageDataConfig,
  split: str,
  *,
  rows: Rows | None = None,
) -> Iterator[Batch]:
  """Returns some rows of each global batch of one pass over `split`, in order.

  The last global batch is filled up with zeros, so that every process gets the
  same number of batches, each of the same shape.

  Args:
    config: the checked config.
    split: any split of the source.
    rows: as in `train_batches`.

  Returns:
    An iterator over {'image': float32 (n, h, w, c), 'label': int32 (n,),
    'mask': float32 (n,), 1 for an example and 0 for padding}.

  Raises:
    UserError: as `train_batches`.
  """
  local = _check_rows('eval_batch_size', config.eval_batch_size, rows)
  source = _open(config, split)
  transform = transforms.eval_transform(config)

  def load_one(index: int) -> source_lib.Example:
    example = source[index]
    return {'image': transform(example['image']), 'label': example['label']}

  def load(step: int) -> Batch:
    indices = [step * config.eval_batch_size + row for row in local]
    examples = [load_one(i) for i in indices if i < len(source)]
    return _pad(config, examples, len(local))

  steps = -(-len(source) // config.eval_batch_size)
  return _read(grain.MapDataset.range(steps).map(load), config)


def _check_rows(field: str, size: int, rows: Rows | None) -> list[int]:
  """Returns the rows in ascending order, so that padding comes last."""
  if size < 1:
    raise UserError(f'config.data.{field}', size, 'at least 1')
  return list(range(size)) if rows is None else sorted(rows.tolist())


def _open(config: ImageDataConfig, split: str) -> source_lib.Source:
  source = sources.open_source(config.source, split)
  return source_lib.LabelCheck(source, config.num_classes)


def _seeds(seed: int) -> tuple[int, int]:
  """Returns independent seeds for the order and for the transforms."""
  if seed < 0:
    raise UserError('config.seed', seed, 'zero or more')
  order, transform = np.random.SeedSequence(seed).generate_state(2)
  return int(order), int(transform)


def _stack(
  config: ImageDataConfig, examples: list[source_lib.Example]
) -> Batch:
  images = np.stack([example['image'] for example in examples])
  labels = [example['label'] for example in examples]
  return {
    'image': transforms.to_value_range(images, config.value_range),
    'label': np.array(labels, np.int32),
  }


def _pad(
  config: ImageDataConfig, examples: list[source_lib.Example], rows: int
) -> Batch:
  """Stacks examples, fills up to `rows` with zeros and says which are real."""
  shape = (rows, *config.image_size, config.channels)
  batch = {
    'image': np.zeros(shape, np.float32),
    'label': np.zeros(rows, np.int32),
    'mask': np.zeros(rows, np.float32),
  }
  if examples:
    real = _stack(config, examples) | {'mask': np.float32(1)}
    for name, values in real.items():
      batch[name][: len(examples)] = values
  return batch


def _read(
  dataset: grain.MapDataset[Batch], config: ImageDataConfig
) -> Iterator[Batch]:
  """Iterates, with `config.threads` threads that each prepare a batch ahead.

  So the host holds at most `config.threads` batches beside the one in use.
  """
  if config.threads < 0:
    raise UserError('config.data.threads', config.threads, 'zero or more')
  options = grain.ReadOptions(
    num_threads=config.threads, prefetch_buffer_size=config.threads
  )
  return iter(dataset.to_iter_dataset(options))
