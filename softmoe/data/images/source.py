"""What a source of labelled images is, and the ones that wrap another."""

import dataclasses
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

from softmoe.errors import UserError


class Example(TypedDict):
  """One labelled image: uint8 (h, w, c) and its class index."""

  image: np.ndarray
  label: int


@runtime_checkable
class Source(Protocol):
  """Random access to labelled images; safe to read from several threads.

  Attributes:
    num_classes: number of classes, where the source knows it.
    labels: every label in order, where the source knows them without reading
      an image.
  """

  @property
  def num_classes(self) -> int | None: ...

  @property
  def labels(self) -> np.ndarray | None: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """Images that fit in memory; grey ones may leave out their channel axis."""

  images: UInt8[np.ndarray, 'n h w *c']
  labels: Integer[np.ndarray, ' n']
  num_classes: int | None = None

  def __post_init__(self):
    if 0 in self.images.shape[1:]:
      shape = self.images.shape
      raise UserError('config.data.source', shape, 'images that have pixels')
    if self.images.ndim == 3:
      object.__setattr__(self, 'images', self.images[..., None])

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> Example:
    return {'image': self.images[index], 'label': int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class Selection:
  """The examples of `source` at any `indices`, in their order."""

  source: Source
  indices: range | Integer[np.ndarray, ' n']

  @property
  def num_classes(self) -> int | None:
    return self.source.num_classes

  @property
  def labels(self) -> np.ndarray | None:
    labels = self.source.labels
    return None if labels is None else labels[np.asarray(self.indices)]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Example:
    return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class LabelCheck:
  """`source`, whose labels must lie in `range(num_classes)`.

  What is known in advance is checked at once, other labels as they are read.

  Raises:
    UserError: the source has more classes, or a label is out of range.
  """

  source: Source
  num_classes: int

  def __post_init__(self):
    known = self.source.num_classes
    if known is not None and known > self.num_classes:
      expected = f'at least {known}, the classes of config.data.source'
      raise UserError('config.data.num_classes', self.num_classes, expected)
    if self.labels is not None:
      wrong = (self.labels < 0) | (self.labels >= self.num_classes)
      if wrong.any():
        index = int(wrong.argmax())
        self._refuse(index, int(self.labels[index]))

  @property
  def labels(self) -> np.ndarray | None:
    return self.source.labels

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Example:
    example = self.source[index]
    if not 0 <= example['label'] < self.num_classes:
      self._refuse(index, example['label'])
    return example

  def _refuse(self, index: int, label: int):
    raise UserError(
      f'label of example {index}',
      label,
      f'config.data.num_classes asks for 0 to {self.num_classes - 1}',
    )
