"""What `python -m softmoe.data.prepare glyphs DIR` made: `docs/glyphs.md`.

A split is SPLIT_images.npy, uint8 (n, 32, 32), and SPLIT_labels.npy, int32
(n,).
"""

import json
import pathlib
from typing import Any

import numpy as np

from softmoe.data import splits
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError


def open_split(argument: str, split: str) -> source_lib.Source:
  """Returns a whole split of the folder `argument`; pixels stay on the disk.

  Raises:
    UserError: the folder or one of its files is missing or damaged, or the
      split is unknown.
  """
  described = _manifest(argument)['splits']
  if split not in described:
    raise splits.unknown(split, described)
  images = _load(argument, f'{split}_images.npy')
  labels = np.array(_load(argument, f'{split}_labels.npy'))
  number = described[split]['images']
  if len(images) != number or len(labels) != number:
    found = f'{len(images)} images and {len(labels)} labels in {split!r}'
    raise _wrong(
      argument, f'as its manifest says {number} of each, not {found}'
    )
  classes = described[split]['classes']
  return source_lib.ArraySource(images, labels, classes)


def class_names(argument: str, split: str) -> list[str]:
  """Returns the characters of a split, in the order of their labels.

  Raises:
    UserError: as `open_split`.
  """
  described = _manifest(argument)['splits']
  if split not in described:
    raise splits.unknown(split, described)
  return list(described[split]['characters'])


def fingerprint(argument: str) -> str:
  """Returns the hash of all that the folder `argument` holds.

  Raises:
    UserError: there is no manifest in it.
  """
  return _manifest(argument)['fingerprint']


def _manifest(folder: str) -> dict[str, Any]:
  try:
    text = (pathlib.Path(folder) / 'manifest.json').read_text(encoding='utf-8')
    manifest = json.loads(text)
    if manifest['data'] == 'glyphs' and manifest['fingerprint']:
      return manifest
  except (OSError, ValueError, KeyError, TypeError):
    pass
  make = f'run `python -m softmoe.data.prepare glyphs {folder or "DIR"}`'
  raise _wrong(folder, f'a folder of glyphs with its manifest: {make}')


def _load(folder: str, name: str) -> np.ndarray:
  try:
    # A plain view of the map: numpy's own class of maps is slow to index.
    return np.asarray(np.load(pathlib.Path(folder) / name, mmap_mode='r'))
  except (OSError, ValueError, EOFError) as e:
    raise _wrong(folder, f'an intact {name} in it ({e})') from e


def _wrong(folder: str, expected: str) -> UserError:
  return UserError('config.data.source', f'glyphs:{folder}', expected)
