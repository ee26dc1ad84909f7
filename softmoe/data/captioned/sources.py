"""Images in groups, and the texts of each group.

Labelled images have the texts of their class, from `config.captions`; else
the source has texts of its own, and every image is a group.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from softmoe.data import splits
from softmoe.data.captioned import captions, tfds, webdataset
from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.data.images import source as source_lib
from softmoe.data.images import sources
from softmoe.errors import UserError

_OPENERS = {'tfds': tfds.open_split, 'webdataset': webdataset.open_split}


@runtime_checkable
class Texts(Protocol):
  """The texts of each group, one or more."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Sequence[str]: ...


@dataclasses.dataclass(frozen=True)
class Captioned:
  """A split.

  Attributes:
    images: labelled by the group that they are of.
    texts: of each group.
  """

  images: source_lib.Source
  texts: Texts


def open_split(config: CaptionedDataConfig, split: str) -> Captioned:
  """Returns the images of a split and their texts, which are kept.

  Raises:
    UserError: the source, the captions or the split are unknown, missing,
      damaged or empty, or a class has no text.
  """
  with splits.named(config, split):
    return _load(config.source, config.captions, config.max_pixels, split)


def fingerprint(config: CaptionedDataConfig) -> str:
  """Returns a hash of what the source says of itself, and of the captions.

  Raises:
    UserError: as `open_split`.
  """
  if not config.captions:
    return ''
  images = sources.fingerprint(config.source)
  both = f'{images} {captions.fingerprint(config.captions)}'
  return hashlib.sha256(both.encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def _load(name: str, texts: str, max_pixels: int, split: str) -> Captioned:
  if texts:
    images = sources.open_source(name, split, max_pixels)
    names = sources.class_names(name, split)
    return Captioned(images, captions.read(texts, names))
  return _own(name, max_pixels, split)


def _own(name: str, max_pixels: int, split: str) -> Captioned:
  """Returns a split of a source with texts of its own."""
  kind, _, argument = name.partition(':')
  known = sorted({*_OPENERS, *sources.KINDS})
  if kind not in known:
    raise UserError('config.data.source', name, f'one of {known}')
  if kind not in _OPENERS:
    expected = f'texts of each class; only {sorted(_OPENERS)} have their own'
    raise UserError('config.data.captions', '', expected)
  base = splits.base_name(split)
  images, texts = _OPENERS[kind](argument, base, max_pixels)
  indices = splits.indices(split, len(images))
  return Captioned(source_lib.Selection(images, indices), texts)
