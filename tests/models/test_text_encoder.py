"""The tower of texts: padding, order, experts."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.models import text_encoder
from softmoe.models.config import MoEConfig, TextConfig

LENGTH, SIZE = 7, 5
TOKENS = np.array([[3, 1, 4, 1, 9, 0, 0], [5, 9, 0, 0, 0, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]], bool)


def make(**fields):
  config = TextConfig(
    width=8, depth=2, mlp_dim=16, num_heads=2, vocab_size=10, **fields
  )
  return text_encoder.TextEncoder(
    config, length=LENGTH, size=SIZE, rngs=nnx.Rngs(0)
  )


@pytest.fixture
def embed():
  """Returns a function of tokens and their mask."""
  model = make(
    moe=MoEConfig(router='tokens_choice', blocks=(1,), num_experts=4)
  )
  call = jax.jit(lambda *arguments: model(*arguments)[0])
  return lambda *arrays: np.asarray(call(*map(jnp.asarray, arrays)))


def test_padding_is_neither_read_nor_routed(embed):
  found = embed(TOKENS, MASK)
  assert found.shape == (2, SIZE) and found.dtype == np.float32
  np.testing.assert_array_equal(embed(np.where(MASK, TOKENS, 7), MASK), found)
  for row in range(2):
    alone = embed(TOKENS[row : row + 1], MASK[row : row + 1])
    np.testing.assert_allclose(alone[0], found[row], rtol=1e-5, atol=1e-6)


def test_every_real_token_and_its_place_count(embed):
  found = embed(TOKENS, MASK)
  for column in range(5):
    other = TOKENS.copy()
    other[0, column] = 8
    assert not np.allclose(embed(other, MASK)[0], found[0], atol=1e-5)
  swapped = TOKENS[:, [1, 0, 2, 3, 4, 5, 6]]
  assert not np.allclose(embed(swapped, MASK)[0], found[0], atol=1e-5)


def test_a_row_that_only_fills_up_is_finite(embed):
  assert np.isfinite(embed(TOKENS, MASK & [[True], [False]])).all()
