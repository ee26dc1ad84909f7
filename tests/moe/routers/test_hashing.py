"""Hash routing: a table that is even, fixed and not learned."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe.routers import hashing

# Tokens, experts, vocabulary.
SHAPES = (
  (1, 1, 1),
  (1, 3, 2),
  (7, 1, 10),
  (8, 4, 4),
  (13, 5, 101),
  (16, 8, 64),
  (10, 16, 7),
  (33, 7, 1000),
  (24, 12, 50),
  (5, 64, 32000),
  (40, 3, 9),
  (17, 9, 17),
)
CASES = 17  # of each shape


@jax.jit
def route(model, x, mask, token_ids):
  return model(x, mask=mask, token_ids=token_ids)


@pytest.mark.parametrize('shape', SHAPES)
def test_matches_plain_loops(shape):
  m, e, vocab = shape
  model = hashing.HashRouter(e, vocab, seed=3)
  table = hashing.make_table(e, vocab, 3)
  for seed in range(CASES):
    rng = np.random.default_rng((seed, *shape))
    busiest = rng.choice([1, vocab])  # skewed: the first id alone
    ids = rng.integers(0, busiest, m)
    mask = rng.random(m) < rng.choice([0.6, 1.0])
    assignment, aux = route(model, jnp.ones((m, 2)), mask, jnp.asarray(ids))
    gates = np.zeros((m, e))
    for token in range(m):
      if mask[token]:
        gates[token, table[ids[token]]] = 1
    np.testing.assert_array_equal(assignment.wanted(), gates == 1)
    np.testing.assert_array_equal(assignment.gates, gates)
    assert (assignment.capacity, assignment.choices) == (None, 1)
    receive = max(np.sum(gates, axis=0)) / max(np.sum(mask), 1)
    np.testing.assert_allclose(aux.metrics['receive_max'], receive, rtol=1e-6)
    assert aux.losses == {} and aux.steer == {}


@pytest.mark.parametrize(('experts', 'vocab'), [(8, 64), (7, 1000), (16, 5)])
def test_table_is_even_and_random(experts, vocab):
  table = hashing.make_table(experts, vocab, 0)
  counts = np.bincount(table, minlength=experts)
  assert np.max(counts) - np.min(counts) <= 1
  assert np.any(np.diff(table) != np.diff(table)[0])
  assert np.any(table != hashing.make_table(experts, vocab, 1))


def test_table_is_the_same_for_ever():
  assert list(hashing.make_table(4, 12, 0)) == [
    0,
    2,
    0,
    3,
    3,
    1,
    2,
    0,
    1,
    2,
    1,
    3,
  ]


def test_nothing_is_learned():
  model = hashing.HashRouter(4, 10)
  assert jax.tree.leaves(nnx.state(model)) == []
  x, ids = jnp.ones((3, 2)), jnp.arange(3)
  gates = lambda x: jnp.sum(model(x, token_ids=ids)[0].gates ** 2)
  assert np.all(jax.grad(gates)(x) == 0)


def test_ids_outside_the_vocabulary_go_to_the_nearest():
  model = hashing.HashRouter(4, 10)
  x, mask = jnp.ones((4, 2)), jnp.ones(4, bool)
  outside, _ = route(model, x, mask, jnp.array([-1, -99, 10, 99]))
  inside, _ = route(model, x, mask, jnp.array([0, 0, 9, 9]))
  np.testing.assert_array_equal(outside.gates, inside.gates)


def test_routing_ignores_all_other_tokens():
  model = hashing.HashRouter(4, 10)
  assert model.causal
  x, mask = jnp.ones((6, 2)), jnp.ones(6, bool)
  before, _ = route(model, x, mask, jnp.arange(6))
  after, _ = route(model, 2 * x, mask, jnp.arange(6).at[3:].set(9))
  np.testing.assert_array_equal(before.gates[:3], after.gates[:3])
  unmasked, _ = model(x, token_ids=jnp.arange(6))
  np.testing.assert_array_equal(before.priority, unmasked.priority)


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    ((0, 10), {}, 'num_experts: got 0; at least 1'),
    ((4, 0), {}, 'vocab_size: got 0; at least 1'),
    ((4, 10), dict(seed=-1), 'seed: got -1; at least 0'),
  ],
)
def test_bad_arguments(arguments, options, message):
  with pytest.raises(ValueError, match=message):
    hashing.HashRouter(*arguments, **options)


def test_missing_ids():
  model = hashing.HashRouter(4, 10)
  with pytest.raises(ValueError, match='token_ids: got None; 0 to 9 for each'):
    model(jnp.ones((3, 2)))
