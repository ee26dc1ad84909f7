"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719), for grey and RGB images.

The operations, and what a magnitude means for each, are those of the TensorFlow
code that the ViT recipes used, oddities included: magnitude 10 is the end of
the scale and larger ones extrapolate; Posterize and Solarize get weaker as the
magnitude grows; Contrast blends with the grey number of pixels / 256, at most
255, and not with the image's mean. We depart from it where it counts in pixels
of an image of 224 x 224 (TranslateX, TranslateY, Cutout): here these are shares
of the image's sides, so that they mean the same at any size.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image as pillow
from PIL import ImageEnhance, ImageOps

from softmoe.data.images import geometry

# Takes the image, the magnitude as a share of the scale (1: its end), and rng.
_Operation = Callable[[pillow.Image, float, np.random.Generator], pillow.Image]

_GREY = 128  # fills what comes from outside the image


def randaugment(
  image: geometry.Image, layers: int, magnitude: int, rng: np.random.Generator
) -> geometry.Image:
  """Applies `layers` operations, each drawn from all with equal chances.

  Args:
    image: grey or RGB.
    layers: number of operations.
    magnitude: their common strength; 10 is the end of the scale.
    rng: decides on operations, directions and the place of Cutout.
  """
  names = list(OPERATIONS)
  result = geometry.to_pillow(image)
  for _ in range(layers):
    operation = OPERATIONS[names[int(rng.integers(len(names)))]]
    result = operation(result, magnitude / 10, rng)
  return geometry.to_array(result)


def _enhance(enhancer: type) -> _Operation:
  """Blends with a degenerate image; a factor of 1 would change nothing."""
  return lambda image, share, rng: enhancer(image).enhance(0.1 + 1.8 * share)


def _contrast(image, share, rng):
  """Blends with grey; the sum of a histogram / 256 was meant as a mean."""
  grey = min(image.width * image.height // 256, 255)
  degenerate = pillow.new(image.mode, image.size, _fill(image, grey))
  return pillow.blend(degenerate, image, 0.1 + 1.8 * share)


def _rotate(image, share, rng):
  return image.rotate(_sign(rng) * 30 * share, fillcolor=_fill(image))


def _shear_x(image, share, rng):
  return _affine(image, shear_x=_sign(rng) * 0.3 * share)


def _shear_y(image, share, rng):
  return _affine(image, shear_y=_sign(rng) * 0.3 * share)


def _translate_x(image, share, rng):
  shift = _sign(rng) * share * image.width * 100 / 224
  return _affine(image, shift_x=shift)


def _translate_y(image, share, rng):
  shift = _sign(rng) * share * image.height * 100 / 224
  return _affine(image, shift_y=shift)


def _posterize(image, share, rng):
  """Keeps the highest bits of each pixel."""
  bits = min(int(4 * share), 8)
  mask = 256 - 2 ** (8 - bits)
  return image.point(lambda pixel: pixel & mask)


def _solarize(image, share, rng):
  return ImageOps.solarize(image, int(256 * share))


def _solarize_add(image, share, rng):
  """Brightens the darker half of the scale."""
  added = int(110 * share)
  return image.point(
    lambda pixel: min(pixel + added, 255) if pixel < 128 else pixel
  )


def _cutout(image, share, rng):
  """Greys a box around a random pixel, cut off at the image's edges."""
  half_width, half_height = (
    int(side * share * 40 / 224) for side in image.size
  )
  x, y = int(rng.integers(image.width)), int(rng.integers(image.height))
  box = (
    max(x - half_width, 0),
    max(y - half_height, 0),
    min(x + half_width, image.width),
    min(y + half_height, image.height),
  )
  result = image.copy()
  result.paste(_fill(image), box)
  return result


def _affine(image, shear_x=0.0, shear_y=0.0, shift_x=0.0, shift_y=0.0):
  """Reads (x + shear_x * y + shift_x, y + shear_y * x + shift_y) at (x, y)."""
  matrix = (1, shear_x, shift_x, shear_y, 1, shift_y)
  method = pillow.Transform.AFFINE
  return image.transform(image.size, method, matrix, fillcolor=_fill(image))


def _fill(image: pillow.Image, grey: int = _GREY) -> int | tuple[int, ...]:
  bands = len(image.getbands())
  return grey if bands == 1 else (grey,) * bands


def _sign(rng: np.random.Generator) -> int:
  return 1 if rng.random() < 0.5 else -1


OPERATIONS: dict[str, _Operation] = {
  'AutoContrast': lambda image, share, rng: ImageOps.autocontrast(image),
  'Equalize': lambda image, share, rng: ImageOps.equalize(image),
  'Invert': lambda image, share, rng: ImageOps.invert(image),
  'Rotate': _rotate,
  'Posterize': _posterize,
  'Solarize': _solarize,
  'SolarizeAdd': _solarize_add,
  'Color': _enhance(ImageEnhance.Color),
  'Contrast': _contrast,
  'Brightness': _enhance(ImageEnhance.Brightness),
  'Sharpness': _enhance(ImageEnhance.Sharpness),
  'ShearX': _shear_x,
  'ShearY': _shear_y,
  'TranslateX': _translate_x,
  'TranslateY': _translate_y,
  'Cutout': _cutout,
}
