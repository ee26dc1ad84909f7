"""Pixels from an encoded image: JPEG or PNG, grey or RGB."""

import io

from PIL import Image as pillow

from softmoe.data.images import geometry
from softmoe.errors import UserError

pillow.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit
_GREY_MODES = ('1', 'L', 'LA')
_DEEP = ';16'  # in the name that Pillow has for the pixels in the file


def decode(
  file: str | io.BytesIO, name: str, max_pixels: int
) -> geometry.Image:
  """Returns the pixels of an image file.

  Args:
    file: its path or its content.
    name: what to call it in an error.
    max_pixels: height times width of the largest image that is decoded.

  Raises:
    UserError: the file is not an intact image of 8 bits a channel, or is too
      large.
  """
  try:
    with pillow.open(file, formats=('JPEG', 'PNG')) as image:
      if _DEEP in str(image.tile):
        raise ValueError('it has 16 bits a channel, not 8')
      if image.height * image.width > max_pixels:
        expected = f'at most {max_pixels} pixels, config.data.max_pixels'
        size = f'{name}, {image.height} x {image.width} pixels'
        raise UserError('config.data.source', size, expected)
      mode = 'L' if image.mode in _GREY_MODES else 'RGB'
      return geometry.to_array(image.convert(mode))
  except UserError:
    raise
  # Pillow raises SyntaxError for damaged files, beside OSError and ValueError.
  except (OSError, ValueError, SyntaxError) as e:
    expected = f'an intact JPEG or PNG image ({e})'
    raise UserError('config.data.source', name, expected) from e
