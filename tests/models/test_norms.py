"""LayerNorm: what Flax's is, and what its backward pass keeps."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.models import config as config_lib
from softmoe.models import norms

P = jax.P
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
  assert [(v.size, v.dtype) for v in kept] == [(x.size, jnp.bfloat16)]


@pytest.mark.parametrize('use_bias', [False, True])
def test_on_a_cpu_it_is_flaxs(monkeypatch, use_bias):
  x, scale, bias = draw()
  module = norms.layer_norm(CONFIG, WIDTH, use_bias=use_bias, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(module)
  params = jax.tree.map(lambda w: jnp.linspace(1, 2, w.size), params)

  def value(params, x):
    return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x)))

  found = jax.value_and_grad(value, (0, 1))(params, x)
  monkeypatch.setattr(norms.sharding, 'platform', lambda: 'tpu')
  expected = jax.value_and_grad(value, (0, 1))(params, x)
  close = lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, found, expected)


@pytest.mark.parametrize(
  'spec', [P(), P(('data', 'expert')), P(None, 'expert')], ids=str
)
def test_the_batch_stays_where_it_is(mesh, spec):
  x, scale, bias = draw()
  x = jnp.tile(x, (8, 4, 1))
  plain = jax.jit(jax.grad(lambda *a: jnp.sum(apply(*a) ** 3), (0, 1, 2)))
  expected = plain(x, scale, bias)
  mesh(2, 4)
  whole = (jax.device_put(v, P()) for v in (scale, bias))
  found = jax.jit(plain.__wrapped__)(jax.device_put(x, spec), *whole)
  for a, e, place in zip(found, expected, (spec, P(), P()), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * np.abs(e).max())
    assert a.sharding.is_equivalent_to(
      jax.sharding.NamedSharding(a.sharding.mesh, place), a.ndim
    )
