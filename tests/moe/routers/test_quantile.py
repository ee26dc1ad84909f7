"""The bias that is solved for, against sorted margins and plain loops."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe.routers import bias_balanced, quantile
from tests.moe.sparse import (
  check_nothing_but_padding_moves_nothing,
  check_nothing_reaches_earlier_tokens,
)

choosers = jax.jit(quantile.choosers, static_argnums=2)


def router(width=8, experts=6, k=2):
  return bias_balanced.BiasBalanced(
    width, experts, k=k, balance_by='quantile', rngs=nnx.Rngs(0)
  )


def skewed(tokens, experts, skew=3.0, seed=0):
  """Returns scores with which most tokens prefer the same experts."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(tokens, experts)) + skew * rng.normal(size=experts)
  return (1 / (1 + np.exp(-logits))).astype(np.float32)


def loads(scores, bias, k):
  """Returns how often each expert is chosen, over the mean."""
  chosen = np.argsort(-(scores + np.asarray(bias)), axis=1)[:, :k]
  counts = np.bincount(chosen.ravel(), minlength=len(bias))
  return counts / np.mean(counts)


def exact(scores, bias, k):
  """Returns the centred quantiles of the margins."""
  bar = np.sort(scores + bias, axis=1)[:, -k - 1]
  margins = bar[:, None] - scores
  solved = np.quantile(margins, k / len(bias), axis=0)
  return solved - np.mean(solved)


def solve(scores, candidates, k):
  rule = quantile.ToQuantile(k / scores.shape[1])
  return rule(candidates, choosers(scores, candidates, k, None))


@pytest.mark.parametrize('k', [1, 3, 5])
def test_choosers_match_plain_loops(k):
  rng = np.random.default_rng(k)
  scores, mask = skewed(17, 5, 0.5), rng.random(17) < 0.7
  bias = 0.3 * rng.normal(size=5).astype(np.float32)
  candidates = np.asarray(quantile.around(jnp.asarray(bias)))
  expected = np.zeros(candidates.shape)
  for token in np.flatnonzero(mask):
    biased = scores[token] + bias
    bar = np.sort(biased)[-min(k + 1, 5)]
    for e, c in np.ndindex(expected.shape):
      expected[e, c] += scores[token, e] + candidates[e, c] > bar
  counts = choosers(scores, candidates, k, mask)
  np.testing.assert_array_equal(counts, expected)
  if k < 5:  # with the bias as it is, those that do choose the expert
    chosen = np.argsort(-(scores[mask] + bias), axis=1)[:, :k]
    now = np.bincount(chosen.ravel(), minlength=5)
    np.testing.assert_array_equal(counts[:, len(quantile.OFFSETS) // 2], now)
  np.testing.assert_array_equal(counts[:, -1], np.sum(mask))


def test_the_last_candidate_is_chosen_whatever_the_scores():
  scores = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0]], np.float32)
  candidates = quantile.around(jnp.array([-1.0, 1.0, 0.0]))
  counts = choosers(scores, candidates, 1, None)
  np.testing.assert_array_equal(counts[:, -1], 3)
  np.testing.assert_array_equal(counts[:, 0], 0)


@pytest.mark.parametrize(('experts', 'k'), [(8, 2), (64, 4), (16, 1)])
def test_repeated_it_is_the_exact_quantile(experts, k):
  scores = skewed(2048, experts)
  candidates = quantile.around(jnp.zeros(experts))
  for _ in range(12):
    candidates = solve(scores, candidates, k)
  bias = np.asarray(quantile.bias(candidates))
  np.testing.assert_allclose(bias, exact(scores, bias, k), atol=3e-3)
  assert abs(np.mean(bias)) < 1e-6 and np.max(np.abs(bias)) > 0.1


@pytest.mark.parametrize(
  ('experts', 'k', 'skew'), [(8, 2, 3.0), (64, 4, 3.0), (16, 1, 1.5)]
)
def test_a_very_skewed_load_gets_even_in_few_steps(experts, k, skew):
  """About as fast as with exact quantiles, and the right way round."""
  scores = skewed(2048, experts, skew)
  candidates, bias = quantile.around(jnp.zeros(experts)), np.zeros(experts)
  spread = [np.std(loads(scores, bias, k))]
  for _ in range(4):
    candidates, bias = solve(scores, candidates, k), exact(scores, bias, k)
    spread.append(np.std(loads(scores, quantile.bias(candidates), k)))
  assert spread[0] > 1.4
  assert spread[1] < 0.4 * spread[0] and spread[4] < 0.1 * spread[0]
  assert spread[4] < 2 * np.std(loads(scores, bias, k)) + 0.02


def test_parts_add_up_to_the_whole_to_the_bit():
  scores = skewed(60, 6)
  candidates = quantile.around(jnp.linspace(-0.2, 0.2, 6))
  whole = choosers(scores, candidates, 2, None)
  cuts = (0, 7, 31, 60)
  parts = (scores[i:j] for i, j in zip(cuts, cuts[1:], strict=False))
  total = sum(choosers(part, candidates, 2, None) for part in parts)
  np.testing.assert_array_equal(total, whole)


def test_layers_on_leading_axes_are_solved_apart():
  stacked = quantile.around(jnp.zeros((2, 6)))
  counts = [
    choosers(skewed(40, 6, seed=i), stacked[i], 2, None) for i in (0, 1)
  ]
  rule = quantile.ToQuantile(1 / 3)
  both = rule(stacked, jnp.stack(counts))
  for i in (0, 1):
    np.testing.assert_array_equal(both[i], rule(stacked[i], counts[i]))


def test_without_tokens_the_bias_stays():
  candidates = quantile.around(jnp.linspace(-0.2, 0.2, 6))
  after = quantile.ToQuantile(1 / 3)(candidates, jnp.zeros_like(candidates))
  np.testing.assert_array_equal(after, candidates)
  assert check_nothing_but_padding_moves_nothing(router()) == {}


def test_all_experts_chosen_leaves_nothing_to_balance():
  candidates = quantile.around(jnp.zeros(3))
  for _ in range(3):
    candidates = solve(skewed(20, 3), candidates, 3)
  assert np.all(np.isfinite(candidates))


def test_it_moves_the_choice_of_the_router_alone():
  model = router(4, 3, 1)
  model.kernel[...] = jnp.eye(4, 3)
  x = jnp.array([[2.0, 1.0, 0.0, 0.0]])
  assert not hasattr(model, 'bias')
  assert np.argmax(model(x)[0].priority) == 0
  model.candidates[...] = quantile.around(jnp.array([0.0, 0.2, 0.0]))
  assert np.argmax(model(x)[0].priority) == 1
  np.testing.assert_allclose(model(x)[0].gates[0], [0, 1, 0], rtol=1e-6)
  check_nothing_reaches_earlier_tokens(router())


def test_unknown_balance():
  with pytest.raises(ValueError, match="balance_by: got 'rank'; one of"):
    bias_balanced.BiasBalanced(4, 3, k=1, balance_by='rank', rngs=nnx.Rngs(0))
