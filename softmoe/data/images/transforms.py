"""From an image of a source to an image of a batch, as a config asks.

Images are uint8 (h, w, c) from end to end.
"""

from collections.abc import Callable

import numpy as np

from softmoe.data.images import geometry, randaugment
from softmoe.data.images.config import PictureDataConfig, TransformConfig
from softmoe.errors import UserError

TrainTransform = Callable[[geometry.Image, np.random.Generator], geometry.Image]
EvalTransform = Callable[[geometry.Image], geometry.Image]

_CROPS = ('none', 'central', 'inception', 'pad')


def train_transform(config: PictureDataConfig) -> TrainTransform:
  """Returns what `config.train` asks for, a function of (image, rng).

  It gives an image of `config.image_size` and `config.channels`.

  Raises:
    UserError: there is no such crop; from the function: the image is neither
      grey nor RGB.
  """
  _check('train', config.train)
  return lambda image, rng: _apply(image, config, config.train, rng)


def eval_transform(config: PictureDataConfig) -> EvalTransform:
  """Returns what `config.eval` asks for, a function of an image.

  Raises:
    UserError: as `train_transform`, or a transform of `config.eval` is random.
  """
  _check('eval', config.eval)
  _check_not_random(config.eval)
  rng = np.random.default_rng(0)  # never drawn from
  return lambda image: _apply(image, config, config.eval, rng)


def to_channels(image: geometry.Image, channels: int) -> geometry.Image:
  """Returns a grey image as RGB, or the reverse (by its luma, ITU-R 601).

  Raises:
    UserError: the image has neither 1 nor 3 channels.
  """
  given = image.shape[2]
  if given not in (1, 3):
    raise UserError('channels of an image', given, 'grey (1) or RGB (3)')
  if given == channels:
    return image
  if channels == 3:
    return np.repeat(image, 3, axis=2)
  return geometry.to_array(geometry.to_pillow(image).convert('L'))


def _apply(
  image: geometry.Image,
  config: PictureDataConfig,
  t: TransformConfig,
  rng: np.random.Generator,
) -> geometry.Image:
  image = to_channels(image, config.channels)
  if t.resize:
    image = geometry.resize_shorter(image, t.resize)
  if t.crop == 'central':
    image = geometry.central_crop(image, config.image_size)
  elif t.crop == 'inception':
    image = geometry.inception_crop(image, t.min_area, rng)
  elif t.crop == 'pad':
    image = geometry.pad_and_crop(image, t.padding, rng)
  image = geometry.resize(image, config.image_size)
  if t.flip:
    image = geometry.random_flip(image, rng)
  if t.randaugment_layers:
    layers, magnitude = t.randaugment_layers, t.randaugment_magnitude
    image = randaugment.randaugment(image, layers, magnitude, rng)
  return image


def _check(part: str, t: TransformConfig):
  if t.crop not in _CROPS:
    raise UserError(f'config.data.{part}.crop', t.crop, f'one of {_CROPS}')


def _check_not_random(transform: TransformConfig):
  reason = '; the transforms of evaluation are not random'
  if transform.crop in ('inception', 'pad'):
    expected = f"'none' or 'central'{reason}"
    raise UserError('config.data.eval.crop', transform.crop, expected)
  if transform.flip:
    raise UserError('config.data.eval.flip', True, f'False{reason}')
  if transform.randaugment_layers:
    layers = transform.randaugment_layers
    raise UserError('config.data.eval.randaugment_layers', layers, f'0{reason}')
