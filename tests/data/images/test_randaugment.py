import numpy as np
import pytest

from softmoe.data.images import geometry, randaugment


def _image(channels, height=12, width=10):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def _apply(name, image, share, seed=0):
  operation = randaugment.OPERATIONS[name]
  rng = np.random.default_rng(seed)
  return geometry.to_array(operation(geometry.to_pillow(image), share, rng))


@pytest.mark.parametrize('magnitude', [0, 5, 10, 15, 30])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', randaugment.OPERATIONS)
def test_each_operation_keeps_shape_and_dtype(name, channels, magnitude):
  for height, width in ((12, 10), (1, 1)):
    image = _image(channels, height, width)
    result = _apply(name, image, magnitude / 10)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)


def test_there_are_sixteen_operations():
  assert len(randaugment.OPERATIONS) == 16


@pytest.mark.parametrize('channels', [1, 3])
def test_pixelwise_operations(channels):
  image = _image(channels)
  wide = image.astype(int)
  for name, share, expected in (
    ('Invert', 1, 255 - wide),
    ('Posterize', 1, wide // 16 * 16),
    ('Posterize', 0.5, wide // 64 * 64),
    ('Posterize', 0, 0 * wide),
    ('Posterize', 3, wide),
    ('Solarize', 1, wide),
    ('Solarize', 0.5, np.where(wide < 128, wide, 255 - wide)),
    ('SolarizeAdd', 1, np.where(wide < 128, wide + 110, wide)),
    ('SolarizeAdd', 2, np.where(wide < 128, np.minimum(wide + 220, 255), wide)),
    ('SolarizeAdd', 0, wide),
  ):
    np.testing.assert_array_equal(_apply(name, image, share), expected, name)


@pytest.mark.parametrize(
  'name', ['Color', 'Contrast', 'Brightness', 'Sharpness']
)
def test_enhancement_is_the_identity_in_the_middle(name):
  image = _image(3)
  np.testing.assert_array_equal(_apply(name, image, 0.5), image)
  assert (_apply(name, image, 1) != image).any()
  assert (_apply(name, image, 0) != image).any()


def test_brightness_scales():
  image = _image(3) // 2
  result = _apply('Brightness', image, 1).astype(int)
  np.testing.assert_allclose(result, image * 1.9, atol=1)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  ('height', 'width', 'grey'), [(16, 40, 2), (224, 224, 196), (256, 300, 255)]
)
def test_contrast_blends_with_a_grey_by_the_number_of_pixels(
  height, width, grey, channels
):
  """As in the TensorFlow code, where it is the sum of a histogram / 256."""
  image = _image(channels, height, width)
  for share, factor in ((0, 0.1), (0.25, 0.55), (1, 1.9)):
    expected = np.clip(grey + factor * (image.astype(float) - grey), 0, 255)
    result = _apply('Contrast', image, share).astype(float)
    np.testing.assert_allclose(result, expected, atol=1)


def test_auto_contrast_stretches_to_the_whole_range():
  image = _image(1) // 4 + 50
  result = _apply('AutoContrast', image, 1)
  assert (result.min(), result.max()) == (0, 255)


@pytest.mark.parametrize(
  ('name', 'axis'), [('TranslateX', 1), ('TranslateY', 0)]
)
def test_translation(name, axis):
  image = np.full((224, 224, 1), 7, np.uint8)
  image[100, 120] = 200
  moved = {
    tuple(np.argwhere(_apply(name, image, 0.1, seed)[..., 0] == 200)[0])
    for seed in range(20)
  }
  offsets = {tuple(np.subtract(place, (100, 120))) for place in moved}
  expected = np.eye(2, dtype=int)[axis] * 10
  assert offsets == {tuple(expected), tuple(-expected)}
  assert (_apply(name, image, 0.1) == 128).sum() == 10 * 224  # filled with grey


@pytest.mark.parametrize(('name', 'axis'), [('ShearX', 1), ('ShearY', 0)])
def test_shear_moves_in_proportion(name, axis):
  # A line across the sheared axis turns into one with slope 0.3.
  line = np.zeros((100, 100, 1), np.uint8)
  line[(slice(None), 50) if axis == 1 else (50, slice(None))] = 200
  places = np.argwhere(_apply(name, line, 1)[..., 0] == 200)
  slope = np.polyfit(places[:, 1 - axis], places[:, axis], 1)[0]
  assert abs(slope) == pytest.approx(0.3, abs=0.01)


def test_rotation_is_by_thirty_degrees_either_way():
  image = np.zeros((101, 101, 1), np.uint8)
  image[50, 49:52] = 100
  image[49:52, 90] = 200
  angles = set()
  for seed in range(10):
    rotated = _apply('Rotate', image, 1, seed)[..., 0]
    row, column = np.argwhere(rotated == 200).mean(axis=0)
    angles.add(round(np.degrees(np.arctan2(50 - row, column - 50))))
  assert angles == {30, -30}


def test_cutout_is_a_grey_box():
  image = np.full((224, 224, 3), 7, np.uint8)
  for seed in range(10):
    rows, columns, _ = np.nonzero(_apply('Cutout', image, 1, seed) == 128)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == height * width * 3
    assert 40 <= height <= 80
    assert 40 <= width <= 80


@pytest.mark.parametrize('channels', [1, 3])
def test_deterministic_given_the_generator(channels):
  image = _image(channels)

  def augment(seed):
    rng = np.random.default_rng(seed)
    return randaugment.randaugment(image, 2, 9, rng)

  for seed in range(20):
    np.testing.assert_array_equal(augment(seed), augment(seed))
  assert len({augment(seed).tobytes() for seed in range(40)}) > 20


def test_layers_are_applied_in_sequence():
  image = _image(3)
  one, rng = np.random.default_rng(3), np.random.default_rng(3)
  expected = randaugment.randaugment(image, 1, 9, one)
  expected = randaugment.randaugment(expected, 1, 9, one)
  result = randaugment.randaugment(image, 2, 9, rng)
  np.testing.assert_array_equal(result, expected)


def test_every_operation_is_drawn(monkeypatch):
  drawn = set()

  def record(name):
    def operation(image, share, rng):
      drawn.add(name)
      return image

    return operation

  for name in randaugment.OPERATIONS:
    monkeypatch.setitem(randaugment.OPERATIONS, name, record(name))
  rng = np.random.default_rng(0)
  randaugment.randaugment(_image(1), 200, 9, rng)
  assert drawn == set(randaugment.OPERATIONS)
