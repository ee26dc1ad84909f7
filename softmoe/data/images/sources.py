"""Sources by name: the one place that knows them all."""

import os

from softmoe.data import splits
from softmoe.data.images import digits, fake, folder, glyphs, idx, npz, tfds
from softmoe.data.images import source as source_lib
from softmoe.data.images.config import MAX_PIXELS
from softmoe.errors import UserError

_OPENERS = {
  'digits': digits.open_split,
  'fake': fake.open_split,
  'folder': folder.open_split,
  'glyphs': glyphs.open_split,
  'idx': idx.open_split,
  'npz': npz.open_split,
  'tfds': tfds.open_split,
}
KINDS = tuple(_OPENERS)
_DECODING = ('folder', 'tfds')
# Of the kinds that know what they hold.
_FINGERPRINTS = {'glyphs': glyphs.fingerprint}
# Of the kinds whose classes have names.
_NAMES = {
  'folder': folder.class_names,
  'glyphs': glyphs.class_names,
  'tfds': tfds.class_names,
}


def open_source(
  name: str, split: str, max_pixels: int = MAX_PIXELS
) -> source_lib.Source:
  """Returns the examples of a split, such as `train` or `train[:90%]`.

  Args:
    name: `kind` or `kind:argument`, as in `digits` or `folder:/data/pets`.
    split: a split of the source, or a slice of one.
    max_pixels: of an image that is decoded.

  Raises:
    UserError: the source or the split is unknown, missing, corrupt or empty.
  """
  kind, argument = _parse(name)
  limit = {'max_pixels': max_pixels} if kind in _DECODING else {}
  whole = _OPENERS[kind](argument, splits.base_name(split), **limit)
  return source_lib.Selection(whole, splits.indices(split, len(whole)))


def fingerprint(name: str) -> str:
  """Returns the hash of all that a source holds, '' where it has none.

  Args:
    name: as in `open_source`.

  Raises:
    UserError: the source is unknown, missing or corrupt.
  """
  kind, argument = _parse(name)
  return _FINGERPRINTS[kind](argument) if kind in _FINGERPRINTS else ''


def class_names(name: str, split: str) -> list[str]:
  """Returns what a source calls its classes, in the order of their labels.

  Where they have no names, these are numbers, '0' the first.

  Args:
    name: as in `open_source`.
    split: a split of the source, or a slice of one.

  Raises:
    UserError: as `open_source`, or there is no telling how many there are.
  """
  kind, argument = _parse(name)
  if kind in _NAMES:
    return _NAMES[kind](argument, splits.base_name(split))
  count = open_source(name, split).num_classes
  if count is None:
    expected = f'a source that knows its classes, such as {sorted(_NAMES)}'
    raise UserError('config.data.source', name, expected)
  return [str(label) for label in range(count)]


def _parse(name: str) -> tuple[str, str]:
  """Returns the kind of a source and its argument, `~` the user's home."""
  kind, _, argument = name.partition(':')
  if kind not in _OPENERS:
    raise UserError('config.data.source', name, f'one of {sorted(_OPENERS)}')
  return kind, os.path.expanduser(argument)
