"""Images with texts of their own: every image is a group."""

import dataclasses
import io
from collections.abc import Callable

from softmoe.data.images import decode
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Images:
  """Images, decoded when they are read; the label of each is its place.

  Attributes:
    name: of the source, for errors.
    count: number of images.
    read: from a place to the encoded image.
    max_pixels: of an image that is decoded.
  """

  name: str
  count: int
  read: Callable[[int], bytes]
  max_pixels: int
  labels: None = None

  @property
  def num_classes(self) -> int:
    return self.count

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> source_lib.Example:
    name = f'{self.name}, example {index}'
    content = io.BytesIO(self.read(index))
    image = decode.decode(content, name, self.max_pixels)
    return {'image': image, 'label': index}


@dataclasses.dataclass(frozen=True)
class Texts:
  """The texts of each image.

  Attributes:
    name: of the source, for errors.
    count: number of images.
    read: from a place to the texts as UTF-8.
  """

  name: str
  count: int
  read: Callable[[int], list[bytes]]

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> list[str]:
    texts = [text.decode('utf-8', 'replace') for text in self.read(index)]
    if not texts:
      given = f'{self.name}, example {index}'
      raise UserError('config.data.source', given, 'an example with a text')
    return texts
