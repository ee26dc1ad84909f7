"""LayerNorm: what Flax's is, and what its backward pass keeps."""

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from softmoe.models import config as config_lib
from softmoe.models import norms

WIDTH = 12
CONFIG = config_lib.TransformerConfig(
  width=WIDTH, depth=1, mlp_dim=8, num_heads=2
)


def draw(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  x = 3 * jax.random.normal(keys[0], (5, 7, WIDTH), dtype) + 1
  return x, *(jax.random.normal(key, (WIDTH,)) for key in keys[1:])


def apply(x, scale, bias):
  norm = norms.layer_norm(CONFIG, WIDTH, rngs=nnx.Rngs(0))
  norm.scale.set_value(scale)
  norm.bias.set_value(bias)
  return norm(x)


def by_hand(x, scale, bias):
  centred = x - jnp.mean(x, -1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
  root = jnp.sqrt(variance + CONFIG.norm_epsilon)
  return centred / root * scale[None, None] + bias[None, None]


def test_outputs_and_gradients():
  found, pull = jax.vjp(apply, *draw())
  expected, pull_by_hand = jax.vjp(by_hand, *draw())
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  dy = jax.random.normal(jax.random.key(1), found.shape)
  for a, b in zip(pull(dy), pull_by_hand(dy), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_its_input_alone_is_kept():
  x, scale, bias = draw(jnp.bfloat16)
  pull = jax.vjp(apply, x, scale, bias)[1]
  kept = [v for v in jax.tree.leaves(pull) if v.size >= x.size]
  assert [(v.shape, v.dtype) for v in kept] == [(x.shape, jnp.bfloat16)]
