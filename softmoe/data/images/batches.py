"""Batches of labelled images, as bytes: see `value_range` for their floats."""

from collections.abc import Iterator

import numpy as np

from softmoe.data import splits, stream
from softmoe.data.images import source as source_lib
from softmoe.data.images import sources, transforms
from softmoe.data.images.config import ImageDataConfig, PictureDataConfig


def train_batches(
  config: ImageDataConfig,
  *,
  seed: int,
  start_step: int = 0,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns some rows of every global batch from `start_step` on.

  Args:
    config: the checked config.
    seed: of the order and of the augmentation.
    start_step: number of batches to leave out.
    rows: which rows of a batch, such as `prefetch.local_rows` says; None: all.

  Returns:
    An endless iterator over {'image': uint8 (n, h, w, c), 'label': int32 (n,)};
    see `stream.train_batches`.

  Raises:
    UserError: the config, the source or one of its examples is wrong; for an
      example it is raised by the iterator.
  """
  source = _open(config, config.train_split)
  transform = transforms.train_transform(config)

  def load(index: int, rng: np.random.Generator) -> stream.Example:
    example = source[index]
    return _example(transform(example['image'], rng), example['label'])

  return stream.train_batches(
    config, len(source), load, seed=seed, start_step=start_step, rows=rows
  )


def eval_batches(
  config: ImageDataConfig,
  split: str,
  *,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns some rows of each global batch of one pass over `split`, in order.

  Args:
    config: the checked config.
    split: any split of the source.
    rows: as in `train_batches`.

  Returns:
    An iterator over {'image': uint8 (n, h, w, c), 'label': int32 (n,), 'mask':
    float32 (n,), 1 for an example and 0 for padding}; see
    `stream.eval_batches`.

  Raises:
    UserError: as `train_batches`.
  """
  return of_source(config, _open(config, split), rows=rows)


def of_source(
  config: PictureDataConfig,
  source: source_lib.Source,
  *,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns what `eval_batches` does, of any source, whatever its classes."""
  transform = transforms.eval_transform(config)

  def load(index: int) -> stream.Example:
    example = source[index]
    return _example(transform(example['image']), example['label'])

  return stream.eval_batches(config, len(source), load, rows=rows)


def _open(config: ImageDataConfig, split: str) -> source_lib.Source:
  with splits.named(config, split):
    source = sources.open_source(config.source, split, config.max_pixels)
  return source_lib.LabelCheck(source, config.num_classes)


def _example(image: np.ndarray, label: int) -> stream.Example:
  return {'image': image, 'label': np.int32(label)}
