import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.images import config as image_config
from softmoe.data.images import geometry, transforms
from softmoe.errors import UserError


def _image(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _config(image_size=(6, 8), channels=3, **fields):
  transform = image_config.TransformConfig(**fields)
  return image_config.ImageDataConfig(
    image_size=image_size, channels=channels, train=transform, eval=transform
  )


def _rng(seed=0):
  return np.random.default_rng(seed)


def test_channels():
  grey, colour = _image(4, 5, 1), _image(4, 5, 3)
  np.testing.assert_array_equal(transforms.to_channels(grey, 1), grey)
  np.testing.assert_array_equal(transforms.to_channels(colour, 3), colour)
  as_colour = transforms.to_channels(grey, 3)
  assert as_colour.shape == (4, 5, 3)
  np.testing.assert_array_equal(as_colour, np.concatenate([grey] * 3, axis=2))
  luma = colour @ np.array([0.299, 0.587, 0.114])
  as_grey = transforms.to_channels(colour, 1)
  assert as_grey.shape == (4, 5, 1)
  np.testing.assert_allclose(as_grey[..., 0], luma, atol=1)


def test_four_channels_are_refused():
  transform = transforms.eval_transform(_config())
  with pytest.raises(UserError, match='channels of an image: got 4'):
    transform(_image(6, 8, 4))


def test_no_transform_changes_nothing():
  image = _image(6, 8, 3)
  config = _config()
  np.testing.assert_array_equal(transforms.eval_transform(config)(image), image)
  np.testing.assert_array_equal(
    transforms.train_transform(config)(image, _rng()), image
  )


@pytest.mark.parametrize('given', [1, 3])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('crop', ['none', 'central', 'inception', 'pad'])
@pytest.mark.parametrize('resize', [0, 7])
def test_result_has_the_asked_shape(given, channels, crop, resize):
  config = _config(
    channels=channels,
    crop=crop,
    resize=resize,
    flip=True,
    randaugment_layers=2,
  )
  transform = transforms.train_transform(config)
  for seed, shape in enumerate([(6, 8), (20, 9), (3, 30)]):
    result = transform(_image(*shape, given), _rng(seed))
    assert (result.shape, result.dtype) == ((6, 8, channels), np.uint8)


def test_evaluation_resizes_then_crops_the_centre():
  image = _image(20, 40, 3)
  config = _config(image_size=(8, 8), resize=10, crop='central')
  result = transforms.eval_transform(config)(image)
  resized = np.asarray(
    pillow.fromarray(image).resize((20, 10), pillow.Resampling.BILINEAR)
  )
  np.testing.assert_array_equal(result, resized[1:9, 6:14])


def test_training_crops_resizes_and_flips():
  image = _image(20, 40, 3)
  config = _config(crop='inception', min_area=0.3, flip=True)
  transform = transforms.train_transform(config)
  for seed in range(10):
    rng = _rng(seed)
    crop = geometry.inception_crop(image, 0.3, rng)
    expected = geometry.random_flip(geometry.resize(crop, (6, 8)), rng)
    np.testing.assert_array_equal(transform(image, _rng(seed)), expected)


@pytest.mark.parametrize(
  'fields',
  [
    {'crop': 'inception'},
    {'crop': 'pad'},
    {'flip': True},
    {'randaugment_layers': 2},
  ],
)
def test_evaluation_refuses_randomness(fields):
  expected = f'config.data.eval.{next(iter(fields))}.*not random'
  with pytest.raises(UserError, match=expected):
    transforms.eval_transform(_config(**fields))


def test_a_crop_that_there_is_not_is_named():
  with pytest.raises(UserError, match='config.data.train.crop'):
    transforms.train_transform(_config(crop='random'))
