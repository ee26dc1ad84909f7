"""The product with all tokens as rows is that of `jax.lax.dot_general`."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe.moe import dot

P = jax.P
RNG = np.random.default_rng(0)
SHAPES = [(6,), (5, 6), (8, 5, 6), (8, 2, 5, 6)]


def last(x, kernel, product):
  return product(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def draw(shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def both(x, kernel, product):
  """Returns the product and the gradients of a function of it."""
  f = lambda x, w: jnp.sum(jnp.sin(last(x, w, product)))
  return last(x, kernel, product), jax.grad(f, (0, 1))(x, kernel)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_equals_the_plain_product_forward_and_gradient(shape):
  x, kernel = draw(shape), draw((6, 7))
  actual = both(x, kernel, dot.dot_general)
  expected = both(x, kernel, jax.lax.dot_general)
  close = lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(
  'spec',
  [P(), P(('data', 'expert')), P('data'), P(None, 'expert'), P('data', None)],
  ids=str,
)
def test_the_batch_stays_where_it_is(mesh, spec):
  mesh(2, 4)
  x = jax.device_put(draw((8, 4, 6)), spec)
  kernel = jax.device_put(draw((6, 7)), P())
  actual = jax.jit(lambda *a: both(*a, dot.dot_general))(x, kernel)
  expected = jax.jit(lambda *a: both(*a, jax.lax.dot_general))(x, kernel)
  for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
    assert a.sharding.is_equivalent_to(e.sharding, a.ndim)


def test_the_kernels_gradient_is_of_a_transposed_copy_of_the_rows():
  x, kernel = draw((64, 16, 32)), draw((32, 48))
  grad = jax.grad(lambda w, x: jnp.sum(last(x, w, dot.dot_general) ** 2))
  lines = jax.jit(grad).lower(kernel, x).as_text().splitlines()
  (copy,) = [line for line in lines if 'optimization_barrier' in line]
  name = copy.split('=')[0].strip()
  (product,) = [
    line for line in lines if 'dot_general' in line and f'{name},' in line
  ]
  assert '32x1024' in copy
  assert product.endswith('-> tensor<48x32xf32>')


def test_other_platforms_get_the_plain_product(monkeypatch):
  monkeypatch.setattr(dot.sharding, 'platform', lambda: 'tpu')
  x, kernel = draw((8, 5, 6)), draw((6, 7))
  text = str(jax.make_jaxpr(lambda *a: last(*a, dot.dot_general))(x, kernel))
  assert 'reshape' not in text
