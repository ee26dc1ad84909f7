import numpy as np
import pytest
from PIL import Image as pillow

from softmoe.data.images import geometry


def _image(height, width, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def _rng(seed=0):
  return np.random.default_rng(seed)


def _is_window(window, image):
  height, width = window.shape[:2]
  return any(
    np.array_equal(window, image[y : y + height, x : x + width])
    for y in range(image.shape[0] - height + 1)
    for x in range(image.shape[1] - width + 1)
  )


@pytest.mark.parametrize('channels', [1, 3])
def test_pillow_round_trip(channels):
  image = _image(4, 6, channels)
  again = geometry.to_array(geometry.to_pillow(image))
  np.testing.assert_array_equal(again, image)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [(3, 5), (8, 4), (20, 30)])
def test_resize_shape_and_dtype(channels, size):
  resized = geometry.resize(_image(8, 10, channels), size)
  assert (resized.shape, resized.dtype) == ((*size, channels), np.uint8)


def test_resize_to_the_same_size_changes_nothing():
  image = _image(5, 7)
  np.testing.assert_array_equal(geometry.resize(image, (5, 7)), image)


def test_resize_is_antialiased():
  # Halved, a one-pixel chequerboard is even grey; sampling would give 0 or 255.
  board = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)
  halved = geometry.resize(board[..., None], (8, 8))
  np.testing.assert_allclose(halved[1:-1, 1:-1].astype(int), 127, atol=1)


def test_resize_is_bilinear():
  ramp = np.array([[0, 100]], np.uint8)[..., None]
  doubled = geometry.resize(ramp, (1, 4))[0, :, 0]
  np.testing.assert_array_equal(doubled, [0, 25, 75, 100])


@pytest.mark.parametrize(
  ('size', 'expected'), [((10, 20), (6, 12)), ((20, 10), (12, 6))]
)
def test_resize_shorter_keeps_the_aspect(size, expected):
  assert geometry.resize_shorter(_image(*size), 6).shape[:2] == expected


@pytest.mark.parametrize('size', [(1, 5000), (5000, 1)])
def test_of_an_elongated_image_the_middle_is_resized(size):
  image = _image(*size)
  resized = geometry.resize_shorter(image, 64)
  assert sorted(resized.shape[:2]) == [64, 16 * 64]
  middle = geometry.central_crop(image, (16, 16))
  expected = geometry.resize_shorter(middle, 64)
  np.testing.assert_array_equal(resized, expected)


def test_central_crop():
  image = _image(9, 10)
  crop = geometry.central_crop(image, (3, 4))
  np.testing.assert_array_equal(crop, image[3:6, 3:7])
  np.testing.assert_array_equal(
    geometry.central_crop(image, (20, 4)), image[:, 3:7]
  )


@pytest.mark.parametrize('shape', [(64, 64), (48, 64), (64, 48)])
@pytest.mark.parametrize('min_area', [0.05, 0.5])
def test_inception_crop_area_and_aspect(shape, min_area):
  image = np.zeros((*shape, 1), np.uint8)
  crops = [
    geometry.inception_crop(image, min_area, _rng(i)).shape for i in range(500)
  ]
  heights, widths = np.array(crops).T[:2]
  share = heights * widths / (shape[0] * shape[1])
  # A side is rounded by up to half a pixel, of 10 pixels at the least.
  assert min_area * 0.9 < share.min() < min_area + 0.1
  assert 0.9 < share.max() <= 1
  aspect = widths / heights
  assert 0.75 / 1.1 < aspect.min() < 0.85
  assert 1.2 < aspect.max() < 4 / 3 * 1.1


def test_inception_crop_is_a_window():
  image = _image(12, 14)
  for seed in range(20):
    assert _is_window(geometry.inception_crop(image, 0.05, _rng(seed)), image)


def test_inception_crop_reaches_every_corner():
  image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
  crops = [geometry.inception_crop(image, 0.2, _rng(i)) for i in range(300)]
  seen = np.unique(np.concatenate([crop.ravel() for crop in crops]))
  assert {0, 7, 56, 63} <= set(seen)


@pytest.mark.parametrize('shape', [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_inception_crop_of_tiny_and_elongated_images(shape):
  for seed in range(20):
    crop = geometry.inception_crop(_image(*shape), 0.5, _rng(seed))
    assert 1 <= crop.shape[0] <= shape[0]
    assert 1 <= crop.shape[1] <= shape[1]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('padding', [0, 1, 4])
def test_pad_and_crop_is_a_window_of_the_reflected_image(channels, padding):
  image = _image(6, 9, channels)
  pad = [(padding, padding), (padding, padding), (0, 0)]
  padded = np.pad(image, pad, mode='reflect')
  for seed in range(20):
    crop = geometry.pad_and_crop(image, padding, _rng(seed))
    assert crop.shape == image.shape
    assert _is_window(crop, padded)


def test_pad_and_crop_draws_every_offset_evenly():
  image = np.arange(25, dtype=np.uint8).reshape(5, 5, 1)
  rng = _rng()
  crops = [geometry.pad_and_crop(image, 1, rng)[2, 2, 0] for _ in range(1800)]
  values, counts = np.unique(crops, return_counts=True)
  np.testing.assert_array_equal(values, [6, 7, 8, 11, 12, 13, 16, 17, 18])
  assert counts.min() > 150  # 200 expected, with a deviation of 13


@pytest.mark.parametrize('size', [1, 2, 3])
def test_padding_may_exceed_the_image(size):
  image = _image(size, size)
  pad = [(5, 5), (5, 5), (0, 0)]
  padded = np.pad(image, pad, mode='reflect' if size > 1 else 'edge')
  assert _is_window(geometry.pad_and_crop(image, 5, _rng()), padded)


def test_flip_is_exact_and_in_half_of_the_cases():
  image = _image(3, 4)
  rng = _rng()
  flipped = 0
  for _ in range(1000):
    result = geometry.random_flip(image, rng)
    is_flip = np.array_equal(result, np.fliplr(image))
    assert is_flip or np.array_equal(result, image)
    flipped += is_flip
  assert 430 < flipped < 570  # 500 expected, with a deviation of 16


def test_decoded_images_need_no_copy():
  assert geometry.to_array(pillow.new('L', (6, 4))).shape == (4, 6, 1)
