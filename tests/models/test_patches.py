"""Patch embedding against a convolution."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from scipy import ndimage

from softmoe.models import patches, vit


def make(image, patch):
  config = vit.ViTConfig(patch_size=patch, width=16)
  return patches.PatchEmbedding(config, image, 3, rngs=nnx.Rngs(0))


def draw_images(image):
  return jax.random.normal(jax.random.key(1), (3, *image, 3))


@pytest.mark.parametrize(
  'image, patch',
  [
    ((8, 8), (4, 4)),
    ((4, 6), (4, 6)),  # one token
    ((11, 9), (4, 2)),  # a rest of three rows and one column
  ],
)
def test_patch_embedding_is_a_convolution(image, patch):
  embed, x = make(image, patch), draw_images(image)
  expected = jax.lax.conv_general_dilated(
    x,
    embed.kernel[...],
    patch,
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  expected = expected.reshape(3, -1, 16) + embed.position[...]
  np.testing.assert_allclose(embed(x), expected, rtol=1e-5, atol=1e-5)


def test_pixels_of_the_rest_are_left_out():
  embed, x = make((14, 9), (4, 2)), draw_images((14, 9))
  changed = x.at[:, 12:].set(jnp.nan).at[:, :, 8:].set(jnp.nan)
  np.testing.assert_array_equal(embed(changed), embed(x))


@pytest.mark.parametrize(
  ('old', 'new'), [((2, 2), (4, 6)), ((3, 5), (6, 4)), ((7, 7), (3, 3))]
)
@pytest.mark.parametrize('first', [0, 1])
def test_positions_of_another_grid_are_the_authors_zoom(old, new, first):
  rng = np.random.default_rng(0)
  position = rng.normal(size=(1, first + old[0] * old[1], 3)).astype('f')
  found = patches.resize_positions(jnp.asarray(position), old, new)
  assert found.shape == (1, first + new[0] * new[1], 3)
  np.testing.assert_array_equal(found[:, :first], position[:, :first])
  places = position[0, first:].reshape(*old, 3)
  factors = (new[0] / old[0], new[1] / old[1], 1)
  np.testing.assert_allclose(
    found[0, first:].reshape(*new, 3),
    ndimage.zoom(places, factors, order=1),
    atol=1e-5,
  )


def test_positions_of_the_same_grid_stay():
  position = jnp.ones((1, 12, 3))
  assert patches.resize_positions(position, (3, 4), (3, 4)) is position
