"""Batches: a pure function of the seed and the step, whatever the processes.

All randomness is attached to a row of one endless stream (shuffle, then repeat,
then augment) before a process picks its rows. So the global batch of b rows at
step s is rows s * b to (s + 1) * b of that stream on any number of processes,
and resuming is to start reading at another row.
"""

import functools
from collections.abc import Iterator

import grain
import numpy as np

from softmoe.config import DataConfig
from softmoe.data import source as source_lib
from softmoe.data import sources, transforms
from softmoe.errors import UserError

Batch = dict[str, np.ndarray]

# "Forever", yet so small that the number of rows fits in 63 bits.
_EPOCHS = 2**31


def train_batches(
  config: DataConfig,
  *,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Returns this process's rows of every global batch from `start_step` on.

  Process p of n gets rows p * b/n to (p + 1) * b/n of a global batch of b. The
  examples are reshuffled in each epoch, and a batch may span two epochs.

  Returns:
    An endless iterator over {'image': float32 (b/n, h, w, c), 'label': int32
    (b/n,)}.

  Raises:
    UserError: the config, the source or one of its examples is wrong; for an
      example it is raised by the iterator.
  """
  rows = _local_rows('batch_size', config.batch_size, process_count)
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
  blocks = stream.batch(rows, batch_fn=functools.partial(_stack, config))
  first = start_step * process_count + process_index
  return _read(blocks[first::process_count], config)


def eval_batches(
  config: DataConfig,
  split: str,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Returns this process's rows of one pass over `split`, in order.

  The last global batch is filled up with zeros, so that every process gets the
  same number of batches, each of the same shape.

  Returns:
    An iterator over {'image': float32 (b/n, h, w, c), 'label': int32 (b/n,),
    'mask': float32 (b/n,), 1 for an example and 0 for padding}.

  Raises:
    UserError: as `train_batches`.
  """
  rows = _local_rows('eval_batch_size', config.eval_batch_size, process_count)
  source = _open(config, split)
  transform = transforms.eval_transform(config)

  def load_one(index: int) -> source_lib.Example:
    example = source[index]
    return {'image': transform(example['image']), 'label': example['label']}

  def load(step: int) -> Batch:
    first = step * config.eval_batch_size + process_index * rows
    last = min(first + rows, len(source))
    examples = [load_one(i) for i in range(first, last)]
    return _pad(config, examples, rows)

  steps = -(-len(source) // config.eval_batch_size)
  return _read(grain.MapDataset.range(steps).map(load), config)


def _local_rows(field: str, size: int, process_count: int) -> int:
  """Returns the rows of a global batch that one process gets."""
  if size < 1 or size % process_count:
    expected = f'a positive multiple of the {process_count} processes'
    raise UserError(f'config.data.{field}', size, expected)
  return size // process_count


def _open(config: DataConfig, split: str) -> source_lib.Source:
  source = sources.open_source(config.source, split)
  return source_lib.LabelCheck(source, config.num_classes)


def _seeds(seed: int) -> tuple[int, int]:
  """Returns independent seeds for the order and for the transforms."""
  if seed < 0:
    raise UserError('config.seed', seed, 'zero or more')
  order, transform = np.random.SeedSequence(seed).generate_state(2)
  return int(order), int(transform)


def _stack(config: DataConfig, examples: list[source_lib.Example]) -> Batch:
  images = np.stack([example['image'] for example in examples])
  labels = [example['label'] for example in examples]
  return {
    'image': transforms.to_value_range(images, config.value_range),
    'label': np.array(labels, np.int32),
  }


def _pad(
  config: DataConfig, examples: list[source_lib.Example], rows: int
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
  dataset: grain.MapDataset[Batch], config: DataConfig
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
