import functools

import jax
import numpy as np
import pytest
from jax import P

from softmoe.data.images import value_range

_RANGES = [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.1, 0.7), (1.0, -2.0)]


def _every_byte(rows=1):
  """Returns images that hold all 256 values."""
  return np.arange(256, dtype=np.uint8).reshape(rows, -1, 1, 1)


def _by_numpy(images, low, high):
  """In float32 and in this order, as the published runs had it."""
  scaled = images.astype(np.float32) / np.float32(255)
  return scaled * np.float32(high - low) + np.float32(low)


@pytest.mark.parametrize('ends', _RANGES)
@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['eager', 'jit'])
def test_every_byte_is_what_numpy_computes(ends, wrap):
  to_floats = wrap(functools.partial(value_range.to_floats, value_range=ends))
  floats = to_floats(jax.numpy.asarray(_every_byte()))
  assert floats.dtype == np.float32
  np.testing.assert_array_equal(floats, _by_numpy(_every_byte(), *ends))


@pytest.mark.parametrize('ends', _RANGES[:3])
def test_the_ends_are_those_of_the_range(ends):
  floats = value_range.to_floats(jax.numpy.asarray(_every_byte()), ends)
  assert (floats[0, 0, 0, 0], floats[0, -1, 0, 0]) == ends


def test_floats_stay_where_the_images_are(mesh, hlo):
  place = jax.NamedSharding(
    mesh(2, 2, 2), P(('data', 'fsdp', 'expert'), None, None, None)
  )
  images = jax.device_put(_every_byte(16), place)
  to_floats = jax.jit(lambda x: value_range.to_floats(x, (-1.0, 1.0)))
  assert jax.typeof(to_floats(images)).sharding.spec == place.spec
  np.testing.assert_array_equal(
    to_floats(images), _by_numpy(_every_byte(16), -1, 1)
  )
  text = to_floats.lower(images).compile().as_text()
  assert 'u8[2,16,1,1]' in text
  assert not hlo.collectives(text, 8)


@pytest.mark.parametrize('ends', _RANGES)
def test_a_tpu_computes_the_floats_to_the_last_bit_but_one(monkeypatch, ends):
  monkeypatch.setattr(value_range.sharding, 'platform', lambda: 'tpu')
  to_floats = functools.partial(value_range.to_floats, value_range=ends)
  images = jax.numpy.asarray(_every_byte())
  assert 'gather' not in str(jax.make_jaxpr(to_floats)(images))
  scale = np.abs(ends).max()
  np.testing.assert_allclose(
    to_floats(images),
    _by_numpy(_every_byte(), *ends),
    rtol=0,
    atol=2e-7 * scale,
  )
