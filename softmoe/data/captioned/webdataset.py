"""Images with texts in tar files, as WebDataset has them: `webdataset:PATH`.

The files of an example share their name up to its first dot: an image, .jpg,
.jpeg or .png, and a text, .txt; other files are left out, and so are examples
without either. PATH is a file, a folder or a pattern of .tar files, and
`data.text.paths.of_splits` says what a folder's splits are. Only the heads in
the files are read to begin with, so that any example can be read at any time.
Examples are in `fixed_order`, so that any slice is a fair sample.
"""

import pathlib
import tarfile
from collections.abc import Iterator

from softmoe.data import splits
from softmoe.data.captioned import own
from softmoe.data.text import documents, paths

Place = tuple[pathlib.Path, int, int]  # file, offset and size
_IMAGE, _TEXT = ('jpg', 'jpeg', 'png'), 'txt'


def open_split(
  argument: str, split: str, max_pixels: int
) -> tuple[own.Images, own.Texts]:
  """Returns images and texts of a whole split.

  Raises:
    UserError: there are no such files, one is damaged, or none has an example;
      the split is unknown.
  """
  found = paths.of_splits(argument, '.tar')
  if split not in found:
    raise splits.unknown(split, found)
  places = [place for file in found[split] for place in _examples(file)]
  if not places:
    expected = 'tar files with KEY.jpg or KEY.png beside KEY.txt'
    raise documents.wrong(argument, expected)
  places = [places[i] for i in splits.fixed_order(len(places))]
  about = f'webdataset:{argument}', len(places)
  image = lambda index: _read(places[index][0])
  texts = lambda index: [_read(places[index][1])]
  return own.Images(*about, image, max_pixels), own.Texts(*about, texts)


def _examples(file: pathlib.Path) -> Iterator[tuple[Place, Place]]:
  """Yields where the image and the text of each example are."""
  known: dict[str, dict[str, Place]] = {}
  for member in _members(file):
    folder, _, name = member.name.rpartition('/')
    key, _, kind = name.partition('.')
    kind = 'image' if kind.lower() in _IMAGE else kind.lower()
    parts = known.setdefault(f'{folder}/{key}', {})
    parts[kind] = file, member.offset_data, member.size
  for parts in known.values():
    if 'image' in parts and _TEXT in parts:
      yield parts['image'], parts[_TEXT]


def _members(file: pathlib.Path) -> list[tarfile.TarInfo]:
  try:
    with tarfile.open(file, 'r:') as opened:
      return [member for member in opened if member.isfile()]
  except (OSError, tarfile.TarError) as error:
    expected = f'an intact tar file that is not compressed ({error})'
    raise documents.wrong(str(file), expected) from error


def _read(place: Place) -> bytes:
  path, offset, size = place
  try:
    with path.open('rb') as file:
      file.seek(offset)
      return file.read(size)
  except OSError as error:
    expected = f'a file that can be read ({error.strerror})'
    raise documents.wrong(str(path), expected) from error
