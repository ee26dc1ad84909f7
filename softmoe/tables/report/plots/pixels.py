"""Pictures and maps of numbers, as small images inside an SVG.

Axes: `h` rows and `w` columns of a picture, `c` colours, `r` and `n` those of a
map.
"""

import base64
import io
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from softmoe.tables.report.plots import axes, svg
from softmoe.tables.report.plots.svg import WIDTH, Length

_ABOVE, _BELOW = (238, 110, 0), (6, 100, 220)  # orange and blue
_COLUMNS, _GAP, _WORDS = 4, 8, 14
_HEAD = 20  # of a map, for its scale

Map = Float[np.ndarray, 'r n']


def shade(values: Map) -> UInt8[np.ndarray, 'r n 4']:
  """Returns numbers from -1 to 1 as colours, the more opaque the larger."""
  colours = np.where((values < 0)[..., None], _BELOW, _ABOVE)
  alpha = np.clip(np.abs(values), 0, 1) * 255
  return np.concatenate([colours, alpha[..., None]], -1).astype(np.uint8)


def map_of(
  label: str, values: Map, low: float, high: float, middle: float | None = None
) -> str:
  """Returns a map of numbers as SVG, with the ends of its scale above.

  Args:
    label: for those who cannot see it.
    values: the numbers.
    low: end of the scale.
    high: its other end.
    middle: what has no colour; None: `low`.
  """
  middle = low if middle is None else middle
  span = max(high - middle, middle - low) or 1.0
  rows, columns = values.shape
  height = max(rows * WIDTH / columns, 90)
  words = f'no colour: {axes.number(middle)}, full: {axes.number(high)}'
  if middle > low:
    words = f'blue: {axes.number(low)}, orange: {axes.number(high)}'
  shaded = shade((values - middle) / span)
  inside = [svg.text(2, 12, words, 'a', 'start')]
  inside += [_image(shaded, 0, _HEAD, WIDTH, height)]
  inside += _frame(0, _HEAD, WIDTH, height)
  return svg.document(_HEAD + height, label, inside)


def over_picture(
  label: str,
  picture: UInt8[np.ndarray, 'h w c'],
  covered: tuple[int, int],
  maps: list[tuple[str, Map]],
) -> str:
  """Returns a picture, and again with each map over it, as SVG.

  Args:
    label: for those who cannot see it.
    picture: of one or three colours.
    covered: height and width in pixels of the part that the maps are of.
    maps: words and numbers from 0 to 1 each.
  """
  side = (WIDTH - _GAP * (_COLUMNS - 1)) / _COLUMNS
  scale = side / picture.shape[1]
  height = picture.shape[0] * scale
  plain, inside = _source(picture), []
  for i, (words, values) in enumerate([('the picture', None), *maps]):
    x = i % _COLUMNS * (side + _GAP)
    y = i // _COLUMNS * (height + _WORDS + _GAP)
    inside.append(_placed(plain, x, y, side, height))
    if values is not None:
      size = covered[1] * scale, covered[0] * scale
      inside.append(_image(shade(0.85 * values), x, y, *size))
    inside.append(svg.text(x + side / 2, y + height + 11, words))
  rows = -(-(len(maps) + 1) // _COLUMNS)
  return svg.document(rows * (height + _WORDS + _GAP), label, inside)


def _frame(
  x: Length, y: Length, width: Length, height: Length
) -> Iterable[str]:
  corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
  for start, end in itertools.pairwise([*corners, corners[0]]):
    yield svg.line(*start, *end, 'g')


def _image(
  pixels: UInt8[np.ndarray, 'h w c'],
  x: Length,
  y: Length,
  width: Length,
  height: Length,
) -> str:
  return _placed(_source(pixels), x, y, width, height)


def _placed(
  source: str, x: Length, y: Length, width: Length, height: Length
) -> str:
  place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
  return f'<image {place} preserveAspectRatio="none" href="{source}"/>'


def _source(pixels: UInt8[np.ndarray, 'h w c']) -> str:
  """Returns a PNG as a URL that holds it."""
  grey = pixels.shape[-1] == 1
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if grey else pixels).save(file, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
