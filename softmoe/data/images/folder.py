"""JPEG and PNG files, a folder for each class.

Either DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE, whose only split is `train`, to
be sliced. Classes are numbered in the order of their names; with several splits
the classes of all of them count. Examples are in `fixed_order`, so that a slice
has images of every class. What is hidden, and what is no file, is left out.
"""

import dataclasses
import os

import numpy as np
from jaxtyping import Integer

from softmoe.data import splits
from softmoe.data.images import decode
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError

_SUFFIXES = ('.jpg', '.jpeg', '.png')


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Image files, decoded when they are read."""

  files: list[str]
  labels: Integer[np.ndarray, ' n']
  num_classes: int
  max_pixels: int

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> source_lib.Example:
    file = self.files[index]
    image = decode.decode(file, file, self.max_pixels)
    return {'image': image, 'label': int(self.labels[index])}


def open_split(argument: str, split: str, max_pixels: int) -> source_lib.Source:
  """Returns a whole split of the folder `argument`; opens no image.

  Raises:
    UserError: a folder is missing, cannot be read or has no images, or the
      split is unknown.
  """
  try:
    return _open_split(argument, split, max_pixels)
  except OSError as error:
    expected = f'a folder that can be read ({error.strerror})'
    given = error.filename or argument
    raise UserError('config.data.source', given, expected) from error


def class_names(argument: str, split: str) -> list[str]:
  """Returns the names of the classes, in the order of their labels."""
  del split  # all have the same
  return _classes(_split_folders(argument))


def _open_split(root: str, split: str, max_pixels: int) -> FolderSource:
  roots = _split_folders(root)
  if split not in roots:
    raise splits.unknown(split, roots)
  classes = _classes(roots)
  files, labels = _list_images(roots[split], classes)
  if not files:
    expected = 'a folder for each class with .jpg, .jpeg or .png files'
    raise UserError('config.data.source', roots[split], expected)
  order = splits.fixed_order(len(files))
  files = [files[i] for i in order]
  return FolderSource(files, labels[order], len(classes), max_pixels)


def _split_folders(root: str) -> dict[str, str]:
  """Returns the folder of each split."""
  folders = {name: os.path.join(root, name) for name in _folders(root)}
  nested = {name: path for name, path in folders.items() if _folders(path)}
  return nested or {'train': root}


def _classes(roots: dict[str, str]) -> list[str]:
  return sorted({name for root in roots.values() for name in _folders(root)})


def _folders(root: str) -> list[str]:
  """Returns the names of the folders in `root`, sorted, without hidden ones."""
  # Paths would ask the disk about each of a million files, a scan does not.
  with os.scandir(root) as entries:
    found = [entry.name for entry in entries if entry.is_dir()]
  return sorted(name for name in found if not name.startswith('.'))


def _list_images(
  root: str, classes: list[str]
) -> tuple[list[str], Integer[np.ndarray, ' n']]:
  files, labels = [], []
  for name in _folders(root):
    folder = os.path.join(root, name)
    found = _images(folder)
    if not found and (deeper := _folders(folder)):
      expected = f'images in it, as it is a class, not in {deeper[0]!r} below'
      raise UserError('config.data.source', folder, expected)
    files += [os.path.join(folder, file) for file in found]
    labels += [classes.index(name)] * len(found)
  return files, np.array(labels, np.int64)


def _images(folder: str) -> list[str]:
  """Returns the names of the image files in a folder, without hidden ones."""
  with os.scandir(folder) as entries:
    found = [
      entry.name
      for entry in entries
      if entry.name.lower().endswith(_SUFFIXES) and entry.is_file()
    ]
  return sorted(name for name in found if not name.startswith('.'))
