"""Images and labels by name in one numpy `.npz` file.

A split is two arrays, either `train_images` and `train_labels` or `x_train` and
`y_train`: uint8 (n, h, w) or (n, h, w, c), and integers (n,) or (n, 1).
"""

import re
import zipfile
import zlib

import numpy as np

from softmoe.data import splits
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError

_IMAGES = re.compile(r'(?P<a>.+)_images|x_(?P<b>.+)')


def open_split(argument: str, split: str) -> source_lib.Source:
  """Returns a whole split of the file `argument`, held in memory.

  Raises:
    UserError: the file is missing or corrupt, the split is unknown, or its
      arrays are not labelled uint8 images.
  """
  images, labels = _load(argument, split)
  labels = labels.reshape(-1) if labels.shape[1:] == (1,) else labels
  if images.dtype != np.uint8 or images.ndim not in (3, 4):
    expected = 'images as uint8 (n, h, w) or (n, h, w, c)'
    raise _wrong(argument, f'{expected}, not {images.dtype} {images.shape}')
  if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
    expected = f'labels as {len(images)} integers, one for each image'
    raise _wrong(argument, f'{expected}, not {labels.dtype} {labels.shape}')
  return source_lib.ArraySource(images, labels)


def _load(path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
  try:
    # Unpickling would run whatever code the author of the file put into it.
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
      raise ValueError('it holds a single array')
    with file:
      pairs = _pairs(file.files)
      if split in pairs:
        images, labels = pairs[split]
        return file[images], file[labels]
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
    expected = f'an intact .npz file without pickles ({e})'
    raise _wrong(path, expected) from e
  raise splits.unknown(split, pairs)


def _pairs(names: list[str]) -> dict[str, tuple[str, str]]:
  """Returns the names of the images and of the labels of each split."""
  pairs = {}
  for images in names:
    if match := _IMAGES.fullmatch(images):
      split = match['a'] or match['b']
      labels = f'{split}_labels' if match['a'] else f'y_{split}'
      if labels in names:
        pairs[split] = (images, labels)
  return pairs


def _wrong(path: str, expected: str) -> UserError:
  return UserError('config.data.source', path, expected)
