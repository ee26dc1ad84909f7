"""JPEG and PNG files, a folder for each class.

Either DIR/SPLIT/CLASS/FILE, or DIR/CLASS/FILE, whose only split is `train`, to
be sliced. Classes are numbered in the order of their names; with several splits
the classes of all of them count. Examples are in `fixed_order`, so that a slice
has images of every class.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Integer
from PIL import Image as pillow

from softmoe.data import geometry, splits
from softmoe.data import source as source_lib
from softmoe.errors import UserError

_SUFFIXES = ('.jpg', '.jpeg', '.png')
_GREY_MODES = ('1', 'L', 'LA')
_DEEP_MODES = ('F', 'I')  # and 'I;16' and its kind


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Image files, decoded when they are read."""

  files: list[pathlib.Path]
  labels: Integer[np.ndarray, ' n']
  num_classes: int

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> source_lib.Example:
    image = decode(self.files[index])
    return {'image': image, 'label': int(self.labels[index])}


def open_split(argument: str, split: str) -> source_lib.Source:
  """Returns a whole split of the folder `argument`.

  Raises:
    UserError: the folder is missing or has no images, or the split is unknown.
  """
  root = pathlib.Path(argument)
  if not root.is_dir():
    raise UserError('config.data.source', argument, 'an existing folder')
  roots = _split_folders(root)
  if split not in roots:
    raise splits.unknown(split, roots)
  classes = sorted({c.name for r in roots.values() for c in _folders(r)})
  files, labels = _list_images(roots[split], classes)
  if not files:
    expected = 'a folder for each class with .jpg, .jpeg or .png files'
    raise UserError('config.data.source', str(roots[split]), expected)
  order = source_lib.fixed_order(len(files))
  return FolderSource([files[i] for i in order], labels[order], len(classes))


def decode(path: pathlib.Path) -> geometry.Image:
  """Returns the pixels of an image file, grey or RGB.

  Raises:
    UserError: the file is not an intact image of 8 bits a channel.
  """
  try:
    with pillow.open(path, formats=('JPEG', 'PNG')) as image:
      if image.mode[0] in _DEEP_MODES:
        raise ValueError(f'its mode is {image.mode}, not 8 bits a channel')
      mode = 'L' if image.mode in _GREY_MODES else 'RGB'
      return geometry.to_array(image.convert(mode))
  # Pillow raises these for damaged files, beside OSError and ValueError.
  except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as e:
    expected = f'an intact JPEG or PNG image ({e})'
    raise UserError('config.data.source', str(path), expected) from e


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folder of each split."""
  nested = [folder for folder in _folders(root) if _folders(folder)]
  return {folder.name: folder for folder in nested} or {'train': root}


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
  found = [path for path in root.iterdir() if path.is_dir()]
  return sorted(path for path in found if not path.name.startswith('.'))


def _list_images(
  root: pathlib.Path, classes: list[str]
) -> tuple[list[pathlib.Path], Integer[np.ndarray, ' n']]:
  files, labels = [], []
  for folder in _folders(root):
    found = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES]
    files += sorted(found)
    labels += [classes.index(folder.name)] * len(found)
  return files, np.array(labels, np.int64)
