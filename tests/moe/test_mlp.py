"""A stack of MLPs on sorted rows against each MLP on its own rows."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.moe import experts, mlp

WIDTH, HIDDEN = 5, 7
C = math.sqrt(2 / math.pi)
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
# Of so many rows, those of each expert. Few shapes: compilation is what costs.
ROWS = 160
SIZES = {
  'some': [30, 20, 40, 10, 25, 35],
  'and some left': [3, 2, 4, 1, 1, 2],
  'empty': [0, 4, 0, 0, 3, 0],
  'skewed': [1, 150, 0, 2, 0, 3],
  'nobody': [0, 0, 0, 0, 0, 0],
  'one expert': [9],
}


@functools.cache
def split(num_experts, dtype=None):
  expert = lambda rngs: mlp.Mlp(WIDTH, HIDDEN, dtype=dtype, rngs=rngs)
  stack = experts.Experts(expert, num_experts, rngs=nnx.Rngs(0)).stacked
  graphdef, state = nnx.split(stack)
  return graphdef, nnx.to_pure_dict(state)


def draw(name, seed=0):
  """Returns the parameters, rows, their weights in the loss, and sizes."""
  sizes = SIZES[name]
  rng = np.random.default_rng(seed)
  normal = lambda shape: rng.normal(size=shape).astype(np.float32)
  params = jax.tree.map(
    lambda w: normal(w.shape) * np.float32(w.shape[-2] ** -0.5),
    split(len(sizes))[1],
  )
  shape = ROWS, WIDTH
  return params, normal(shape), normal(shape), np.array(sizes, np.int32)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def grouped(graphdef, params, x, dy, sizes):
  """Returns the outputs, rows past the last masked, and gradients."""
  real = jnp.arange(len(x))[:, None] < jnp.sum(sizes)

  def run(params, x):
    return jnp.where(real, nnx.merge(graphdef, params).grouped(x, sizes), 0)

  y, pull = jax.vjp(run, params, x)
  return y, *pull(dy.astype(y.dtype))


def loop(params, x, dy, sizes):
  """Returns the same in float64, expert after expert."""
  params, x, dy = jax.tree.map(np.float64, (params, x, dy))
  y, dx = np.zeros_like(x), np.zeros_like(x)
  dparams = jax.tree.map(np.zeros_like, params)
  for e, start in enumerate(np.cumsum(sizes) - sizes):
    rows = slice(start, start + sizes[e])
    up, down = (params[k]['kernel'][e] for k in ('up', 'down'))
    h = x[rows] @ up + params['up']['bias'][e]
    t = np.tanh(C * (h + 0.044715 * h**3))
    g = h * (1 + t) / 2
    y[rows] = g @ down + params['down']['bias'][e]
    slope = (1 + t + h * (1 - t**2) * C * (1 + 0.134145 * h**2)) / 2
    dh = dy[rows] @ down.T * slope
    dx[rows] = dh @ up.T
    for k, inputs, d in (('down', g, dy[rows]), ('up', x[rows], dh)):
      dparams[k]['kernel'][e] = inputs.T @ d
      dparams[k]['bias'][e] = np.sum(d, axis=0)
  return y, dparams, dx


def assert_close(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(
      np.asarray(a, np.float64), e, **tolerance
    ),
    actual,
    expected,
  )


@pytest.mark.parametrize('name', SIZES)
def test_equals_a_loop_over_experts(name):
  for seed in range(5):
    case = draw(name, seed)
    actual = grouped(split(len(case[-1]))[0], *case)
    assert_close(actual, loop(*case), rtol=1e-4, atol=1e-4)


def test_the_rows_past_the_last_reach_nothing():
  params, x, dy, sizes = draw('and some left')
  graphdef = split(len(sizes))[0]
  expected = grouped(graphdef, params, x, dy, sizes)
  x[sum(sizes) :] = 1e6
  dy[sum(sizes) :] = 1e6
  actual = grouped(graphdef, params, x, dy, sizes)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_equals_the_call_on_each_expert():
  params, x, dy, sizes = draw('some')
  graphdef = split(len(sizes))[0]
  y, *_ = grouped(graphdef, params, x, dy, sizes)
  x = np.split(x, np.cumsum(sizes)[:-1])
  y = np.split(y, np.cumsum(sizes)[:-1])
  for e in range(len(sizes)):
    one = nnx.merge(graphdef, jax.tree.map(lambda w, e=e: w[e], params))
    np.testing.assert_allclose(
      one(jnp.asarray(x[e])), y[e], rtol=1e-4, atol=1e-4
    )


def test_bfloat16():
  params, x, dy, sizes = draw('some')
  graphdef = split(len(sizes), jnp.bfloat16)[0]
  case = jnp.bfloat16(x), dy, sizes
  y, dparams, dx = grouped(graphdef, params, *case)
  assert y.dtype == dx.dtype == jnp.bfloat16
  assert dparams['up']['kernel'].dtype == jnp.float32
  expected = loop(params, *case)
  largest = jax.tree.map(lambda e: np.max(np.abs(e)), expected)
  error = jax.tree.map(
    lambda a, e, most: np.max(np.abs(np.float64(a) - e)) / most,
    (y, dparams, dx),
    expected,
    largest,
  )
  assert max(jax.tree.leaves(error)) < 0.02


def test_start():
  module = mlp.Mlp(300, 500, rngs=nnx.Rngs(0))
  bound = math.sqrt(6 / 800)  # Xavier uniform
  for weights in nnx.to_pure_dict(nnx.state(module)).values():
    assert 0.99 * bound < jnp.max(jnp.abs(weights['kernel'])) <= bound
    np.testing.assert_allclose(jnp.std(weights['bias']), 1e-6, rtol=0.2)


ACTIVATIONS = {
  'gelu': lambda h, _: h * (1 + np.tanh(C * (h + 0.044715 * h**3))) / 2,
  'relu': lambda h, _: np.maximum(h, 0),
  'swiglu': lambda h, factor: h / (1 + np.exp(-h)) * factor,
}


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_activations(activation):
  make = lambda rngs: mlp.Mlp(WIDTH, HIDDEN, activation=activation, rngs=rngs)
  stack = experts.Experts(make, 2, rngs=nnx.Rngs(0)).stacked
  graphdef, params = nnx.split(stack)
  rng = np.random.default_rng(0)
  draw = lambda w: jnp.asarray(rng.normal(size=w.shape), w.dtype)
  params = jax.tree.map(draw, nnx.to_pure_dict(params))
  x, gates = draw(np.zeros((6, WIDTH), 'f')), draw(np.zeros(6, 'f'))

  def expected(e):
    def linear(name, x):
      kernel, bias = params[name]['kernel'], params[name]['bias']
      return x @ np.asarray(kernel[e]) + np.asarray(bias[e])

    x_ = np.asarray(x)
    factor = linear('factor', x_) if activation == 'swiglu' else None
    return linear('down', ACTIVATIONS[activation](linear('up', x_), factor))

  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  one = nnx.merge(graphdef, jax.tree.map(lambda w: w[1], params))
  close(one(x), expected(1))
  close(one.gated(x, gates), np.asarray(gates)[:, None] * expected(1))
  grouped = nnx.merge(graphdef, params).grouped(x, jnp.array([2, 4]))
  close(grouped, np.concatenate([expected(0)[:2], expected(1)[2:]]))


def test_unknown_activation():
  with pytest.raises(UserError, match="activation: got 'tanh'"):
    mlp.Mlp(WIDTH, HIDDEN, activation='tanh', rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  ('activation', 'firsts'), [('gelu', 1), ('gelu_exact', 1), ('swiglu', 2)]
)
def test_of_the_hidden_units_only_the_first_matmuls_outputs_are_kept(
  activation, firsts
):
  module = mlp.Mlp(WIDTH, HIDDEN, activation=activation, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(module)
  call = lambda params, x: nnx.merge(graphdef, params)(x)
  pull = jax.vjp(call, params, jnp.ones((ROWS, WIDTH)))[1]
  kept = [v.shape for v in jax.tree.leaves(pull)]
  assert kept.count((ROWS, HIDDEN)) == firsts
