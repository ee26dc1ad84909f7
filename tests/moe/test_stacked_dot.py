"""Rows of each expert times its matrix."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import sharding
from softmoe.moe import experts, mlp, stacked_dot

E, D, F = 3, 16, 24
SHAPES = {'few': 4, 'many': 5}  # rows, beside D // FEW


def draw(rows, dtype='float32'):
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = (E, rows, D), (E, D, F), (E, rows, F)
  return [
    jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)
  ]


def plain(rows, kernels):
  return jax.vmap(lambda x, w: x @ w)(rows, kernels)


@pytest.mark.parametrize('rows', SHAPES.values(), ids=SHAPES)
def test_equals_each_product_forward_and_gradient(rows):
  x, w, dy = draw(rows)
  for f in (stacked_dot.multiply, jax.jit(stacked_dot.multiply)):
    y, pull = jax.vjp(f, x, w)
    expected, expected_pull = jax.vjp(plain, x, w)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(pull(dy), expected_pull(dy), strict=True):
      np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_types_stay():
  x, w, dy = draw(SHAPES['few'], 'bfloat16')
  y, pull = jax.vjp(stacked_dot.multiply, x, w)
  assert {v.dtype for v in (y, *pull(dy))} == {jnp.dtype('bfloat16')}


def of_rows(rows):
  """Returns the products that the gradient of rows is made by, as text."""
  x, w, dy = draw(rows)
  pull = lambda x, dy: jax.vjp(lambda x: stacked_dot.multiply(x, w), x)[1](dy)
  text = jax.jit(pull).lower(x, dy).compile().as_text()
  return [line for line in text.splitlines() if ' dot(' in line]


def test_few_rows_leave_the_matrices_as_they_lie():
  """The matrix is the left side, summed over its last axis, where rows are."""
  (few,) = of_rows(SHAPES['few'])
  assert f'f32[{E},{D},{SHAPES["few"]}]' in few
  (many,) = of_rows(SHAPES['many'])
  assert f'f32[{E},{SHAPES["many"]},{D}]' in many


def test_other_platforms_get_the_plain_product(monkeypatch):
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  x, w, _ = draw(SHAPES['few'])
  # A function of its own: one that was traced before is not traced again.
  text = str(jax.make_jaxpr(lambda *a: stacked_dot.multiply(*a))(x, w))
  assert 'optimization_barrier' not in text


@pytest.mark.parametrize(
  ('activation', 'shape'), [('swiglu', (2, 2)), ('gelu', (7,))]
)
def test_experts_equal_each_mlp(activation, shape):
  create = lambda rngs: mlp.Mlp(D, F, activation=activation, rngs=rngs)
  made = experts.Experts(create, E, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (E, *shape, D))
  found, pull = jax.vjp(lambda made, x: made(x), made, x)
  each = lambda made, x: jax.vmap(lambda f, x: f(x))(made.stacked, x)
  expected, expected_pull = jax.vjp(each, made, x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  leaves = zip(
    *(jax.tree.leaves(f(x)) for f in (pull, expected_pull)), strict=True
  )
  for one, other in leaves:
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
