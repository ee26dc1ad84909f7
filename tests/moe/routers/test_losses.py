"""The losses by hand, and against float64 loops written from the papers."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe.moe.routers import losses
from tests.moe.loss_loops import counted, switch, variation

GATES = jnp.array([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]])
FIRST = jnp.array([[1.0, 0, 0], [1, 0, 0]])


def importance(gates, mask):
  real = [row for row, keep in zip(gates, mask, strict=True) if keep]
  return variation([sum(row[e] for row in real) for e in range(len(real[0]))])


def load(logits, threshold, std, mask):
  sums = [0.0] * logits.shape[1]
  for t in range(len(logits)):
    for e in range(len(sums)):
      if mask[t]:
        needed = (threshold[t] - logits[t, e]) / std
        sums[e] += 1 - 0.5 * (1 + math.erf(needed / math.sqrt(2)))
  return variation([s / sum(mask) for s in sums])


def gshard(gates, choices, mask):
  n, pairs = counted(gates, choices, mask)
  return sum(c / n * m for c, m in pairs) / len(pairs)


def z(logits, mask):
  each = [
    math.log(sum(math.exp(v) for v in row)) ** 2
    for row, keep in zip(logits, mask, strict=True)
    if keep
  ]
  return sum(each) / len(each)


def test_importance_by_hand():
  # Sums 1.2, 0.3, 0.5; mean 2/3, variance (1.44 + .09 + .25) / 3 - 4/9.
  expected = (1.78 / 3 - 4 / 9) / (4 / 9)
  assert losses.importance(GATES) == pytest.approx(expected, rel=1e-6)
  assert losses.importance(jnp.full((5, 4), 0.25)) == 0


def test_switch_and_gshard_by_hand():
  # f = (1, 0, 0) and P_0 = 0.6.
  assert losses.switch(GATES, FIRST) == pytest.approx(3 * 0.6, rel=1e-6)
  assert losses.gshard(GATES, FIRST) == pytest.approx(0.6 / 3, rel=1e-6)
  even = jnp.full((4, 4), 0.25)
  assert losses.switch(even, jnp.eye(4)) == pytest.approx(1)
  assert losses.gshard(even, jnp.eye(4)) == pytest.approx(1 / 16)


def test_switch_of_the_worked_threshold_example():
  p = jnp.array(
    [
      [0.70, 0.15, 0.10, 0.05],
      [0.61, 0.20, 0.10, 0.09],
      [0.30, 0.28, 0.27, 0.15],
      [0.21, 0.26, 0.18, 0.35],
      [0.08, 0.63, 0.17, 0.12],
      [0.10, 0.20, 0.65, 0.05],
      [0.45, 0.05, 0.09, 0.41],
      [0.05, 0.28, 0.03, 0.64],
    ]
  )
  first = jax.nn.one_hot(jnp.argmax(p, axis=1), 4)
  assert losses.switch(p, first) == pytest.approx(1.085, rel=1e-5)


def test_z_by_hand():
  logits = jnp.log(jnp.array([[1.0, 1.0], [3.0, 1.0]]))
  expected = (math.log(2) ** 2 + math.log(4) ** 2) / 2
  assert losses.z(logits) == pytest.approx(expected, rel=1e-6)


def test_load_by_hand():
  # Two standard deviations under the threshold, at it, and one above.
  chances = losses.chances(jnp.array([[1.0, 2, 2.5]]), jnp.array([2.0]), 0.5)
  expected = [[0.022750132, 0.5, 0.841344746]]
  np.testing.assert_allclose(chances, expected, rtol=1e-5)
  assert losses.load(chances) == pytest.approx(variation(expected[0]), rel=1e-5)


# Few, so that compilation stays cheap: one token, one expert, and others.
SHAPES = ((7, 5), (1, 4), (6, 1), (8, 3))


def draw(seed):
  """Returns logits, thresholds, noise deviation, first choices and mask."""
  rng = np.random.default_rng(seed)
  m, e = SHAPES[seed % len(SHAPES)]
  logits = rng.normal(size=(m, e)) * rng.choice([0.3, 2])
  mask = rng.random(m) < rng.choice([0.6, 1])
  mask[rng.integers(m)] = True
  threshold = np.sort(logits)[:, -rng.integers(1, e + 1)]
  first = np.eye(e)[rng.integers(e, size=m)]
  return logits, threshold + rng.normal(size=m) / e, 1 / e, first, mask


def softmax(logits):
  each = [[math.exp(v) for v in row] for row in logits]
  return np.array([[v / sum(row) for v in row] for row in each])


# name: (the loss of drawn arrays, the loop's). As functions of the logits.
PAIRS = {
  'importance': (
    lambda x, thr, std, c, mask: losses.importance(jax.nn.softmax(x), mask),
    lambda x, thr, std, c, mask: importance(softmax(x), mask),
  ),
  'load': (
    lambda x, thr, std, c, mask: losses.load(losses.chances(x, thr, std), mask),
    lambda x, thr, std, c, mask: load(x, thr, std, mask),
  ),
  'switch': (
    lambda x, thr, std, c, mask: losses.switch(jax.nn.softmax(x), c, mask),
    lambda x, thr, std, c, mask: switch(softmax(x), c, mask),
  ),
  'gshard': (
    lambda x, thr, std, c, mask: losses.gshard(jax.nn.softmax(x), c, mask),
    lambda x, thr, std, c, mask: gshard(softmax(x), c, mask),
  ),
  'z': (
    lambda x, thr, std, c, mask: losses.z(x, mask),
    lambda x, thr, std, c, mask: z(x, mask),
  ),
}


def float32(args):
  logits, threshold, std, first, mask = args
  as32 = lambda x: jnp.asarray(x, jnp.float32)
  return as32(logits), as32(threshold), std, as32(first), jnp.asarray(mask)


@pytest.mark.parametrize('name', PAIRS)
def test_values_and_gradients_are_those_of_the_loop(name):
  compute, expected = PAIRS[name]
  compute = jax.jit(jax.value_and_grad(compute), static_argnums=2)
  for seed in range(40):
    logits, *rest = draw(seed)
    value, grad = compute(*float32((logits, *rest)))
    assert value == pytest.approx(expected(logits, *rest), rel=2e-5, abs=2e-6)
    if seed < 8:
      slopes = differences(lambda x, r=rest: expected(x, *r), logits)
      size = np.max(np.abs(slopes)) + 0.1
      np.testing.assert_allclose(grad, slopes, rtol=0, atol=2e-5 * size)


def differences(function, x, step=1e-5):
  """Returns the central differences of a float64 function."""
  slopes = np.zeros_like(x)
  for at in np.ndindex(*x.shape):
    move = np.zeros_like(x)
    move[at] = step
    slopes[at] = (function(x + move) - function(x - move)) / (2 * step)
  return slopes


@pytest.mark.parametrize('name', PAIRS)
def test_padding_counts_nowhere(name):
  logits, threshold, std, first, _ = float32(draw(3))
  loss, _ = PAIRS[name]
  mask = jnp.ones(len(logits), bool)
  alone = loss(logits, threshold, std, first, None)
  alone = pytest.approx(float(alone), rel=1e-6)
  assert loss(logits, threshold, std, first, mask) == alone
  pad = lambda x: jnp.concatenate([x, jnp.full((2, *x.shape[1:]), 7.0)])
  mask = jnp.arange(len(logits) + 2) < len(logits)
  padded = loss(pad(logits), pad(threshold), std, pad(first), mask)
  assert padded == alone


@pytest.mark.parametrize('name', PAIRS)
def test_padding_alone_has_no_loss_and_no_gradient(name):
  logits, threshold, std, first, _ = float32(draw(3))
  loss, _ = PAIRS[name]
  mask = jnp.zeros(len(logits), bool)
  compute = jax.jit(jax.value_and_grad(loss), static_argnums=2)
  value, grad = compute(logits, threshold, std, first, mask)
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros_like(logits))


def test_counts_carry_no_gradient():
  grad = jax.grad(losses.switch, argnums=1)(GATES, FIRST)
  np.testing.assert_array_equal(grad, np.zeros((2, 3)))
