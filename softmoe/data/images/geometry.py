"""Resizing, cropping and flipping one image, grey or RGB."""

import functools
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image as pillow

# The underscores allow one function to take one size and return another.
Image = UInt8[np.ndarray, '_h _w _c']

# Width over height of an inception crop, its range in logarithms.
_LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
_LONGEST = 16  # times the shorter side


def to_pillow(image: Image) -> pillow.Image:
  """Returns a grey ('L') or RGB Pillow image; the inverse of `to_array`."""
  return pillow.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(image: pillow.Image) -> Image:
  """Returns the pixels of a Pillow image, with a channel axis if it is grey."""
  pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def resize(image: Image, size: tuple[int, int]) -> Image:
  """Returns the image at `size` (height, width): bilinear, antialiased."""
  if image.shape[:2] == size:
    return image
  height, width = size
  resample = pillow.Resampling.BILINEAR
  return to_array(to_pillow(image).resize((width, height), resample))


def resize_shorter(image: Image, side: int) -> Image:
  """Returns the image with its shorter side at `side`, its aspect kept.

  Of an image that is longer than `_LONGEST` times its width, or the reverse,
  the middle: one pixel by 5,000 would otherwise be 64 by 320,000.
  """
  most = _LONGEST * min(image.shape[:2])
  image = central_crop(image, (most, most))
  height, width = image.shape[:2]
  scale = side / min(height, width)
  return resize(image, (round(height * scale), round(width * scale)))


def central_crop(image: Image, size: tuple[int, int]) -> Image:
  """Returns the central window of `size`, or of all there is if smaller."""
  height, width = (
    min(*sides) for sides in zip(image.shape, size, strict=False)
  )
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return image[top : top + height, left : left + width]


def inception_crop(
  image: Image, min_area: float, rng: np.random.Generator
) -> Image:
  """Returns a random window, as in Szegedy et al. 2015 (arXiv:1409.4842).

  The aspect is drawn first, evenly in its logarithm, then the area, evenly
  between `min_area` and the largest that fits with that aspect. So no draw has
  to be rejected; an image too elongated for `min_area` gives the largest.

  Args:
    image: the whole image.
    min_area: smallest window, as a share of the image.
    rng: decides on the window.
  """
  height, width = image.shape[:2]
  aspect = math.exp(_uniform(*_LOG_ASPECTS, rng))
  largest = min(width * width / aspect, height * height * aspect)
  area = _uniform(min(min_area * height * width, largest), largest, rng)
  window = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
  return _random_window(image, (max(window[0], 1), max(window[1], 1)), rng)


def pad_and_crop(image: Image, padding: int, rng: np.random.Generator) -> Image:
  """Returns a random window, of the image's size, of the reflected image."""
  height, width = image.shape[:2]
  top = int(rng.integers(2 * padding + 1))
  left = int(rng.integers(2 * padding + 1))
  rows = _reflection(height, padding)[top : top + height]
  columns = _reflection(width, padding)[left : left + width]
  return image.take(rows, axis=0).take(columns, axis=1)


def random_flip(image: Image, rng: np.random.Generator) -> Image:
  """Returns the image, mirrored left to right in half of the cases."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def _uniform(low: float, high: float, rng: np.random.Generator) -> float:
  return low + (high - low) * rng.random()


def _random_window(
  image: Image, window: tuple[int, int], rng: np.random.Generator
) -> Image:
  height, width = window
  top = int(rng.integers(image.shape[0] - height + 1))
  left = int(rng.integers(image.shape[1] - width + 1))
  return image[top : top + height, left : left + width]


@functools.lru_cache(maxsize=1024)
def _reflection(size: int, padding: int) -> np.ndarray:
  """Returns which pixel is seen at -padding, ..., size + padding - 1."""
  period = max(2 * (size - 1), 1)  # the edge pixels are not repeated
  positions = np.arange(-padding, size + padding) % period
  return np.minimum(positions, period - positions)
