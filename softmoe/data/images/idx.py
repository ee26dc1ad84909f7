"""The file format of MNIST, Fashion-MNIST and KMNIST, gzipped or not.

A file holds one array of bytes: two zeros, the type (8: uint8), the number of
axes, each axis as a big-endian uint32, then the data
(http://yann.lecun.com/exdb/mnist).
"""

import gzip
import math
import pathlib
import zlib

import numpy as np
from jaxtyping import UInt8

from softmoe.data import splits
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError

_PREFIXES = {'train': 'train', 'test': 't10k'}
_UINT8 = 8


def open_split(argument: str, split: str) -> source_lib.Source:
  """Returns a whole split of the folder `argument`, held in memory.

  Raises:
    UserError: the split is unknown, or a file is missing or corrupt.
  """
  if split not in _PREFIXES:
    raise splits.unknown(split, _PREFIXES)
  folder, prefix = pathlib.Path(argument), _PREFIXES[split]
  images = _read(_find(folder / f'{prefix}-images-idx3-ubyte'), axes=3)
  labels = _read(_find(folder / f'{prefix}-labels-idx1-ubyte'), axes=1)
  if len(images) != len(labels):
    raise UserError(
      'config.data.source',
      argument,
      f'as many labels ({len(labels)}) as images ({len(images)}) in {split!r}',
    )
  return source_lib.ArraySource(images, labels)


def _find(path: pathlib.Path) -> pathlib.Path:
  zipped = path.with_name(path.name + '.gz')
  for candidate in (path, zipped):
    if candidate.is_file():
      return candidate
  raise UserError(
    'config.data.source', str(path.parent), f'a folder with {zipped.name}'
  )


def _read(path: pathlib.Path, axes: int) -> UInt8[np.ndarray, '...']:
  """Returns the array in a file, which must have this number of axes."""
  try:
    raw = path.read_bytes()
    data = gzip.decompress(raw) if path.suffix == '.gz' else raw
  except (OSError, EOFError, zlib.error) as error:
    raise _corrupt(path, str(error)) from error
  header = 4 + 4 * axes
  if data[:4] != bytes((0, 0, _UINT8, axes)) or len(data) < header:
    raise _corrupt(path, f'its header is {data[:4].hex()}')
  shape = tuple(int(n) for n in np.frombuffer(data, '>u4', axes, offset=4))
  if len(data) - header != math.prod(shape):
    raise _corrupt(path, f'shape {shape} but {len(data) - header} bytes')
  return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _corrupt(path: pathlib.Path, reason: str) -> UserError:
  return UserError(
    'config.data.source', str(path), f'an intact idx file of uint8: {reason}'
  )
