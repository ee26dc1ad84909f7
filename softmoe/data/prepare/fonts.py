"""The faces that are installed, and images of what they draw.

Needs fontTools, which says what a face has, and Pillow, which draws it.
"""

import contextlib
import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image as pillow
from PIL import ImageFont

from softmoe.errors import UserError

SIZE = 32  # pixels, of both sides of an image
_INK = 28  # pixels that the ink of a face's characters fills, at the median
_MEASURED = 128  # pixels an em, at which a face is measured
_SUFFIXES = ('.otc', '.otf', '.ttc', '.ttf')
_FOLDERS = (
  '/usr/share/fonts',
  '/usr/local/share/fonts',
  '~/.fonts',
  '~/.local/share/fonts',
  '/System/Library/Fonts',
  '/Library/Fonts',
  '~/Library/Fonts',
)

# What it says of odd fonts tells a user nothing.
logging.getLogger('fontTools').setLevel(logging.CRITICAL)

Images = UInt8[np.ndarray, 'n 32 32']


@dataclasses.dataclass(frozen=True, order=True)
class Face:
  """One typeface of a font file; faces are ordered by what is in the file.

  Attributes:
    family, style, version: as the font names them.
    sha256: of the file, in hex.
    index: of the face in its file.
    path: of the file; it takes no part in the order.
  """

  family: str
  style: str
  version: str
  sha256: str
  index: int
  path: str = dataclasses.field(compare=False)

  @property
  def name(self) -> str:
    return f'{self.family} {self.style}'


def installed() -> list[str]:
  """Returns the font files of this machine, each once."""
  found = set()
  for folder in _FOLDERS:
    for path in pathlib.Path(folder).expanduser().rglob('*'):
      if path.suffix.lower() in _SUFFIXES and path.is_file():
        found.add(str(path.resolve()))
  return sorted(found)


def tools() -> dict[str, str]:
  """Returns the versions of what decides over a pixel.

  Raises:
    UserError: fontTools is not installed.
  """
  try:
    import fontTools
  except ImportError as e:
    expected = "an install with it: pip install 'softmoe[glyphs]'"
    raise UserError('fontTools', 'not installed', expected) from e
  import PIL
  from PIL import features

  return {
    'fontTools': fontTools.version,
    'FreeType': str(features.version('freetype2')),
    'Pillow': PIL.__version__,
  }


def faces(path: str) -> list[Face]:
  """Returns the faces of a font file; none if it cannot be read."""
  try:
    digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    return [
      Face(*_names(font), digest, index, path)
      for index, font in _open_all(path)
    ]
  except Exception:  # as in `draw`
    return []


def draw(face: Face, characters: str, sample: str) -> Images:
  """Returns an image of each character, all zero where the face has none.

  Ink is 255 on 0, anti-aliased, centred. A face has one size, at which the
  longer side of its ink is 28 pixels at the median of `sample`; a character
  that is then larger than the image is drawn smaller. What a face draws for two
  characters alike stands for missing ones, and is left out.
  """
  drawn = np.zeros((len(characters), SIZE, SIZE), np.uint8)
  try:
    known = _code_points(face)
    font = _scaled(face, [c for c in sample if ord(c) in known])
  except Exception:  # broken files fail in many ways, all of which are none
    return drawn
  for i, character in enumerate(characters):
    if ord(character) in known:
      with contextlib.suppress(OSError):  # such as a hint that is wrong
        drawn[i] = _draw_one(font, character)
  return _without_fillers(drawn)


def _open_all(path: str) -> Iterator[tuple[int, Any]]:
  from fontTools import ttLib

  with ttLib.TTFont(path, fontNumber=0, lazy=True) as first:
    number = getattr(first.reader, 'numFonts', 1)
  for index in range(number):
    with ttLib.TTFont(path, fontNumber=index, lazy=True) as font:
      yield index, font


def _names(font: Any) -> tuple[str, str, str]:
  """Returns family, style and version, without spaces that mean nothing."""
  names = font['name']
  texts = (
    names.getBestFamilyName(),
    names.getBestSubFamilyName(),
    names.getDebugName(5),
  )
  family, style, version = (' '.join((text or '').split()) for text in texts)
  return family, style, version


def _code_points(face: Face) -> frozenset[int]:
  """Returns what a face maps to a glyph that is not `.notdef`."""
  from fontTools import ttLib

  with ttLib.TTFont(face.path, fontNumber=face.index, lazy=True) as font:
    table = font.getBestCmap() or {}
  return frozenset(code for code, name in table.items() if name != '.notdef')


def _scaled(face: Face, sample: list[str]) -> ImageFont.FreeTypeFont:
  """Returns the face at its size.

  Raises:
    OSError: the face cannot be drawn, or draws nothing of the sample.
  """
  font = ImageFont.truetype(
    face.path, _MEASURED, face.index, layout_engine=ImageFont.Layout.BASIC
  )
  sides = sorted(filter(None, (_side(font, each) for each in sample)))
  if not sides:
    raise OSError('no ink')
  return font.font_variant(size=_INK * _MEASURED / sides[len(sides) // 2])


def _side(font: ImageFont.FreeTypeFont, character: str) -> int:
  """Returns the longer side of a character's ink in pixels, 0 if it fails."""
  try:
    return max(_ink(font, character).size)
  except OSError:
    return 0


def _ink(font: ImageFont.FreeTypeFont, character: str) -> pillow.Image:
  """Returns the ink of a character and nothing around it; empty if none.

  Raises:
    OSError: the glyph is broken.
  """
  mask: Any = font.getmask2(character, mode='L')[0]
  if not all(mask.size):
    return pillow.new('L', (0, 0))
  image = pillow.frombytes('L', mask.size, bytes(mask))
  return image.crop(image.getbbox() or (0, 0, 0, 0))


def _draw_one(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
  ink = _ink(font, character)
  while max(ink.size) > SIZE:
    smaller = font.size * (SIZE - 0.5) / max(ink.size)
    font = font.font_variant(size=smaller)
    ink = _ink(font, character)
  image = pillow.new('L', (SIZE, SIZE))
  left, top = ((SIZE - length) // 2 for length in ink.size)
  image.paste(ink, (left, top))
  return np.asarray(image)


def _without_fillers(drawn: Images) -> Images:
  rows = drawn.reshape(len(drawn), -1)
  _, which, counts = np.unique(
    rows, axis=0, return_inverse=True, return_counts=True
  )
  alone = counts[which.reshape(-1)] == 1
  return drawn * alone[:, None, None].astype(np.uint8)
