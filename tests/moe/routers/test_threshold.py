"""Threshold routing against plain loops, and the example worked by hand."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe.routers import threshold
from tests.moe import loss_loops

# Tokens, width, experts, capacity factor.
SHAPES = (
  (1, 4, 1, 1.0),
  (1, 5, 3, 1.0),
  (7, 4, 1, 0.5),
  (8, 4, 4, 1.0),
  (13, 6, 5, 2.0),
  (16, 8, 8, 1.5),
  (10, 4, 16, 3.0),
  (33, 8, 7, 1.0),
  (24, 3, 12, 2.0),
  (5, 16, 64, 8.0),
  (40, 8, 3, 1.25),
  (17, 2, 9, 0.7),
)
CASES = 17  # of each shape


def router(width, experts, **options):
  return threshold.Threshold(width, experts, rngs=nnx.Rngs(0), **options)


def tokens(seed=0):
  return jax.random.normal(jax.random.key(seed), (32, 8))


def by_capacity(width, experts, factor, **options):
  options = dict(mode='capacity', capacity_factor=factor) | options
  return router(width, experts, **options)


def probabilities_of(x, kernel):
  logits = x @ kernel
  exp = np.exp(logits - np.max(logits, axis=1, keepdims=True))
  return exp / np.sum(exp, axis=1, keepdims=True)


def choose(p, t):
  """Returns {expert: rank} of one token, and how clear the choice is."""
  ranked = sorted(range(len(p)), key=lambda e: (-p[e], e))
  wanted, mass, margin = {}, np.float32(0), np.inf
  for rank, expert in enumerate(ranked):
    if rank:
      margin = min(margin, abs(mass - t), p[ranked[rank - 1]] - p[expert])
    if rank and mass >= t:
      break
    wanted[expert] = rank
    mass += p[expert]
  return wanted, margin


def keep(wanted, p, capacity):
  """Returns the kept pairs, and how clear the choice is."""
  kept, margin = np.zeros(p.shape, bool), np.inf
  for expert in range(p.shape[1]):
    claims = sorted(
      (ranks[expert], -p[token, expert], token)
      for token, ranks in enumerate(wanted)
      if expert in ranks
    )
    for _, _, token in claims[:capacity]:
      kept[token, expert] = True
    for last, first in zip(
      claims[capacity - 1 : capacity], claims[capacity:], strict=False
    ):
      if last[0] == first[0]:
        margin = min(margin, first[1] - last[1])
  return kept, margin


def draw(rng, m, d, e, capacity):
  """Returns a case whose choices do not hang on the last bits."""
  while True:
    sharpness, skew = rng.uniform(0.2, 4), rng.choice([0, 0, 2])
    x = rng.normal(size=(m, d)) + skew * rng.normal(size=d)
    kernel = sharpness / np.sqrt(d) * rng.normal(size=(d, e))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    mask = rng.random(m) < rng.choice([0.6, 1.0])
    t = np.float32(rng.uniform(0.05, 0.99))
    p = probabilities_of(x, kernel)
    choices = [choose(row, t) for row in p]
    wanted = [
      w if real else {} for (w, _), real in zip(choices, mask, strict=True)
    ]
    kept, margin = keep(wanted, p, capacity)
    if min(margin, *(margin for _, margin in choices)) > 1e-5:
      return x, kernel, mask, t, p, wanted, kept


def expected_loss_and_gradient(x, kernel, mask, p, kept, cotangent):
  """Returns the loss and d(sum(cotangent * combine) + loss) / d(x, kernel)."""
  experts = p.shape[1]
  first = np.eye(experts, dtype=np.float32)[np.argmax(p, axis=1)]
  loss = 0.01 * loss_loops.switch(p, first, mask)
  real, pairs = loss_loops.counted(p, first, mask)
  top1 = np.array([count / real for count, _ in pairs], np.float32)
  dp = np.where(kept, cotangent, 0)
  dp = dp + np.where(mask[:, None], 0.01 * experts * top1 / real, 0)
  dlogits = p * (dp - np.sum(dp * p, axis=1, keepdims=True))
  return loss, dlogits @ kernel.T, x.T @ dlogits


def kept_by(assignment):
  """Returns the pairs that experts keep, by the contract of `Assignment`."""
  priority = np.asarray(assignment.priority)
  kept = np.zeros(priority.shape, bool)
  for expert in range(priority.shape[1]):
    order = np.argsort(-priority[:, expert], kind='stable')
    for token in order[: assignment.capacity]:
      kept[token, expert] = priority[token, expert] > -np.inf
  return kept


# Compiled once a shape: to run it operation by operation takes longer.
@functools.partial(jax.jit, static_argnames='all_experts')
def route(model, x, mask=None, key=None, threshold=None, all_experts=None):
  return model(
    x, mask=mask, key=key, threshold=threshold, all_experts=all_experts
  )


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, kernel, x, mask, t, kept, cotangent):
  def objective(x, kernel):
    model = nnx.merge(graphdef, nnx.State({'kernel': nnx.Param(kernel)}))
    assignment, aux = model(x, mask=mask, threshold=t)
    combine = jnp.where(kept, assignment.gates, 0)
    return jnp.sum(cotangent * combine) + aux.losses['balance'], (
      assignment,
      aux,
    )

  return jax.grad(objective, (0, 1), has_aux=True)(x, kernel)


@pytest.mark.parametrize('shape', SHAPES)
def test_matches_plain_loops(shape):
  m, d, e, factor = shape
  capacity = min(m, max(2, int(np.ceil(np.float32(m / e * factor)))))
  graphdef = nnx.graphdef(by_capacity(d, e, factor, min_capacity=2))
  for seed in range(CASES):
    rng = np.random.default_rng((seed, *shape[:3]))
    x, kernel, mask, t, p, wanted, kept = draw(rng, m, d, e, capacity)
    cotangent = rng.normal(size=p.shape).astype(np.float32)
    gradient, (assignment, aux) = run(
      graphdef, kernel, x, mask, t, kept, cotangent
    )
    assert assignment.capacity == capacity
    for token, ranks in enumerate(wanted):
      assert set(np.flatnonzero(assignment.wanted()[token])) == set(ranks)
    np.testing.assert_array_equal(kept_by(assignment), kept)
    combine = np.where(kept, assignment.gates, 0)
    np.testing.assert_allclose(combine, np.where(kept, p, 0), atol=2e-6)
    loss, dx, dkernel = expected_loss_and_gradient(
      x, kernel, mask, p, kept, cotangent
    )
    np.testing.assert_allclose(aux.losses['balance'], loss, rtol=1e-5)
    np.testing.assert_allclose(gradient[0], dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient[1], dkernel, rtol=1e-4, atol=1e-4)
    counts = [sum(e in ranks for ranks in wanted) for e in range(e)]
    receive = max(counts) / max(np.sum(mask), 1)
    np.testing.assert_allclose(aux.metrics['receive_max'], receive, rtol=1e-6)
    top1 = np.sum(np.max(p, axis=1) * mask) / max(np.sum(mask), 1)
    np.testing.assert_allclose(aux.metrics['top1_probability'], top1, rtol=1e-5)


@pytest.mark.parametrize('mode', ['dropless', 'causal'])
def test_without_capacity_all_that_is_wanted_is_kept(mode):
  graphdef = nnx.graphdef(router(6, 5, mode=mode))
  for seed in range(CASES):
    rng = np.random.default_rng(seed)
    x, kernel, mask, t, p, wanted, kept = draw(rng, 13, 6, 5, 13)
    assert np.sum(kept) == sum(len(ranks) for ranks in wanted)
    cotangent = rng.normal(size=p.shape).astype(np.float32)
    gradient, (assignment, _) = run(
      graphdef, kernel, x, mask, t, kept, cotangent
    )
    assert assignment.capacity is None
    np.testing.assert_array_equal(assignment.wanted(), kept)
    _, dx, _ = expected_loss_and_gradient(x, kernel, mask, p, kept, cotangent)
    np.testing.assert_allclose(gradient[0], dx, rtol=1e-4, atol=1e-5)


PROBABILITIES = np.array(
  [
    [0.70, 0.15, 0.10, 0.05],
    [0.61, 0.20, 0.10, 0.09],
    [0.30, 0.28, 0.27, 0.15],
    [0.21, 0.26, 0.18, 0.35],
    [0.08, 0.63, 0.17, 0.12],
    [0.10, 0.20, 0.65, 0.05],
    [0.45, 0.05, 0.09, 0.41],
    [0.05, 0.28, 0.03, 0.64],
  ],
  np.float32,
)


def worked_example(**options):
  """Returns a router whose logits are its tokens, and log probabilities."""
  model = router(4, 4, threshold=0.6, **options)
  model.kernel[...] = jnp.eye(4)
  return model, jnp.log(PROBABILITIES)


def test_worked_example():
  model, x = worked_example(
    mode='capacity', capacity_factor=1.0, min_capacity=1
  )
  assignment, aux = route(model, x)
  assert assignment.capacity == 2
  # Tokens 2 and 3 lose their claims on busy experts, 6 loses all: expert 3
  # prefers the .35 of token 3's first choice to the .41 of token 6's second.
  combine = np.zeros((8, 4))
  combine[0, 0], combine[1, 0] = 0.70, 0.61
  combine[2, 1], combine[4, 1] = 0.28, 0.63
  combine[2, 2], combine[5, 2] = 0.27, 0.65
  combine[3, 3], combine[7, 3] = 0.35, 0.64
  actual = np.where(kept_by(assignment), assignment.gates, 0)
  np.testing.assert_allclose(actual, combine, rtol=1e-6)
  wanted = np.asarray(assignment.wanted())
  assert list(np.sum(wanted, axis=1)) == [1, 1, 3, 2, 1, 1, 2, 1]
  np.testing.assert_allclose(np.mean(wanted, axis=0), [0.5, 0.375, 0.25, 0.375])
  # 0.01 times the 1.085 of the sum by hand.
  np.testing.assert_allclose(aux.losses['balance'], 0.01085, rtol=1e-6)
  np.testing.assert_allclose(aux.metrics['receive_max'], 0.5)


def test_threshold_at_call_time():
  model, x = worked_example()
  static, _ = jax.jit(lambda x: model(x, threshold=0.96))(x)
  for t, wanted in ((1e-6, 8), (0.4, 10), (0.6, 12), (0.96, 31)):
    traced, _ = route(model, x, threshold=jnp.float32(t))
    assert np.sum(traced.wanted()) == wanted
  np.testing.assert_array_equal(static.priority, traced.priority)


def test_threshold_one_is_not_all_experts():
  model = router(8, 16)
  model.kernel[...] = 50 * jax.random.normal(jax.random.key(0), (8, 16))
  x, mask = tokens(), jnp.arange(32) < 30
  some, _ = route(model, x, mask, threshold=jnp.float32(1))
  assert np.sum(some.wanted()) < 30 * 16
  everyone, _ = route(model, x, mask, all_experts=True)
  np.testing.assert_array_equal(jnp.sum(everyone.wanted(), axis=1), 16 * mask)
  always = router(8, 16, all_experts=True)
  everyone, _ = route(always, x, mask)
  np.testing.assert_array_equal(jnp.sum(everyone.wanted(), axis=1), 16 * mask)


def test_a_threshold_at_call_time_takes_the_place_of_every_expert():
  model, x = worked_example(all_experts=True)
  counts = lambda **options: jnp.sum(route(model, x, **options)[0].wanted())
  assert counts() == 32
  assert counts(threshold=jnp.float32(0.6)) == 12
  assert counts(threshold=jnp.float32(jnp.inf)) == 32
  both = model(x, threshold=0.6, all_experts=True)[0]
  assert jnp.sum(both.wanted()) == 32


def test_without_weights_every_gate_is_one():
  model, x = worked_example(weighted=False)
  assignment, _ = route(model, x)
  np.testing.assert_array_equal(assignment.gates, np.ones((8, 4)))
  weighted, _ = route(worked_example()[0], x)
  np.testing.assert_array_equal(assignment.priority, weighted.priority)


def test_equal_probabilities_rank_by_index():
  model, x = worked_example(mode='capacity', capacity_factor=4.0)
  assignment, aux = route(model, jnp.zeros_like(x), threshold=jnp.float32(0.5))
  np.testing.assert_array_equal(
    assignment.wanted(), [[True, True, False, False]] * 8
  )
  np.testing.assert_allclose(assignment.priority[:, :2], [[0.25, -0.75]] * 8)
  np.testing.assert_allclose(aux.losses['balance'], 0.01)


def test_causal_routing_ignores_later_tokens_to_the_bit():
  model = router(8, 16, mode='causal')
  assert model.causal
  x, other = tokens(), tokens(1)
  before, _ = route(model, x)
  for first in (1, 7, 31):
    after, _ = route(model, jnp.concatenate([x[:first], other[first:]]))
    np.testing.assert_array_equal(before.gates[:first], after.gates[:first])
    np.testing.assert_array_equal(
      before.priority[:first], after.priority[:first]
    )
    assert np.any(before.gates[first:] != after.gates[first:])


def test_capacity_lets_later_tokens_push_earlier_ones_out():
  model = by_capacity(8, 16, 1.0, min_capacity=1)
  assert not model.causal
  x, other = tokens(), tokens(1)
  before = kept_by(route(model, x)[0])
  after = kept_by(route(model, jnp.concatenate([x[:16], other[16:]]))[0])
  assert np.any(before[:16] != after[:16])


def test_padding_changes_nothing_for_others():
  model, x = router(8, 16), tokens()
  mask = jnp.arange(32) % 3 > 0
  assignment, aux = route(model, x, mask)
  assert not np.any(assignment.wanted()[~mask])
  changed, aux_changed = route(model, jnp.where(mask[:, None], x, 9), mask)
  np.testing.assert_array_equal(assignment.priority, changed.priority)
  jax.tree.map(np.testing.assert_array_equal, aux, aux_changed)
  nothing, aux = route(model, x, jnp.zeros(32, bool))
  assert not np.any(nothing.wanted())
  assert float(aux.losses['balance']) == 0
  everything, _ = route(model, x, jnp.ones(32, bool))
  unmasked, _ = route(model, x)
  np.testing.assert_array_equal(everything.priority, unmasked.priority)


@pytest.mark.parametrize(
  ('factors', 'tokens', 'training', 'evaluation'),
  [
    ((1.0, 2.0), 64, 8, 16),
    ((1.0, None), 64, 8, 8),
    ((0.5, None), 16, 4, 4),  # min_capacity
    ((0.5, None), 3, 3, 3),  # there are no more tokens
    ((99.0, None), 64, 64, 64),
  ],
)
def test_capacity_of_an_expert(factors, tokens, training, evaluation):
  model = by_capacity(4, 8, factors[0], eval_capacity_factor=factors[1])

  def capacities(x):
    assert model(x, key=jax.random.key(0))[0].capacity == training
    assert model(x)[0].capacity == evaluation

  jax.eval_shape(capacities, jnp.ones((tokens, 4)))


def test_starts_uniform():
  kernel = np.asarray(router(64, 512).kernel[...])
  assert kernel.dtype == np.float32
  assert 0.99 / 8 < np.max(np.abs(kernel)) <= 1 / 8
  assert np.std(kernel) == pytest.approx(1 / 8 / 3**0.5, rel=0.01)


def test_computes_in_float32_without_noise():
  model, x = router(8, 16), tokens().astype(jnp.bfloat16)
  low, _ = route(model, x, key=jax.random.key(0))
  high, _ = route(model, x.astype(jnp.float32))
  np.testing.assert_allclose(low.gates, high.gates, rtol=1e-6)
  assert low.gates.dtype == jnp.float32


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(threshold=0.0), r'threshold: got 0.0; above 0, at most 1'),
    (dict(threshold=1.5), r'threshold: got 1.5; above 0, at most 1'),
    (dict(threshold=float('nan')), 'threshold: got nan'),
    (dict(mode='sorted'), "mode: got 'sorted'; one of"),
    (dict(mode='capacity'), 'capacity_factor: got None; above 0'),
    (
      dict(mode='capacity', capacity_factor=0.0),
      'capacity_factor: got 0.0; above 0',
    ),
    (
      dict(mode='causal', capacity_factor=1.0),
      "capacity_factor: got 1.0; None: in mode 'causal'",
    ),
    (
      dict(eval_capacity_factor=1.0),
      "eval_capacity_factor: got 1.0; None: in mode 'dropless'",
    ),
    (dict(min_capacity=0), 'min_capacity: got 0; at least 1'),
    (dict(balance=-1.0), 'balance: got -1.0; at least 0'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    router(4, 8, **options)


def test_bad_arguments_of_a_call():
  model = router(4, 8)
  with pytest.raises(ValueError, match='threshold: got 2.0; above 0'):
    model(jnp.ones((3, 4)), threshold=2.0)
  with pytest.raises(ValueError, match="x: got 'width 5'; 4"):
    model(jnp.ones((3, 5)))
