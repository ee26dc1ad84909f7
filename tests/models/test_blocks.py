"""Dropout, drop path."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import sharding
from softmoe.models import blocks, vit


def test_dropout_keeps_the_mean_and_drops_its_share():
  x = jnp.full((200, 100), 3.0)
  y = np.asarray(blocks.dropout(x, 0.2, jax.random.key(0), x.shape))
  assert set(np.unique(y)) == {0.0, np.float32(3 / 0.8)}
  assert np.mean(y == 0) == pytest.approx(0.2, abs=0.01)
  assert blocks.dropout(x, 0.2, None, x.shape) is x


def test_dropout_with_a_smaller_mask_drops_whole_images():
  x = jnp.ones((500, 2, 3))
  y = np.asarray(blocks.dropout(x, 0.4, jax.random.key(0), (500, 1, 1)))
  dropped = np.all(y == 0, axis=(1, 2))
  assert np.all(dropped | np.all(y != 0, axis=(1, 2)))
  assert np.mean(dropped) == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize('shape', [(16, 6, 10), (16, 1, 1)])
def test_each_device_draws_its_part_of_the_mask(mesh, shape):
  x, key = jnp.ones((16, 6, 10)), jax.random.key(0)
  drop = jax.jit(lambda x: blocks.dropout(x, 0.3, key, shape))
  expected = np.asarray(drop(x))
  x = jax.device_put(x, jax.NamedSharding(mesh(2, 2, 2), sharding.batch_spec()))
  np.testing.assert_array_equal(drop(x), expected)
  sizes = [str(n) for n in shape]
  drawn = lambda first: f'u32[{",".join([first, *sizes[1:]])}]'
  program = drop.lower(x).compile().as_text()
  assert drawn('2') in program and drawn('16') not in program


def test_drop_path_skips_halves_of_a_block():
  config = vit.ViTConfig(width=16, mlp_dim=24, num_heads=2)
  block = blocks.Block(config, moe=False, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (1, 4, 16))
  x = jnp.tile(x, (400, 1, 1))
  y, _, _ = jax.jit(block)(x, jnp.array(0.5), jax.random.key(1))
  # Same image, so: neither half, the first, the second, or both.
  outcomes, counts = np.unique(np.round(y[:, 0, 0], 4), return_counts=True)
  assert len(outcomes) == 4
  assert np.round(x[0, 0, 0], 4) in outcomes
  np.testing.assert_allclose(counts / 400, 0.25, atol=0.08)
