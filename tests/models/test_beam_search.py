"""Beam search against all sequences, and against greedy choice."""

import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe.models import beam_search

VOCABULARY, LENGTH, EOS, BATCH = 3, 4, 0, 3
WEIGHTS = np.random.default_rng(0).normal(size=(BATCH, LENGTH + 1, VOCABULARY))


def logits_of(example, prefix):
  """Returns logits that depend on all of the prefix, in NumPy or JAX."""
  seen = sum((i + 1) * 1.7 * token for i, token in enumerate(prefix))
  return [3 * np.sin(w * (1 + seen) + w) for w in WEIGHTS[example, len(prefix)]]


TABLE = np.zeros((BATCH, VOCABULARY**LENGTH, LENGTH + 1, VOCABULARY), 'f')
for example in range(BATCH):
  for n in range(LENGTH + 1):
    for prefix in itertools.product(range(VOCABULARY), repeat=n):
      number = sum(t * VOCABULARY**i for i, t in enumerate(prefix))
      if n <= LENGTH and number < VOCABULARY**LENGTH:
        TABLE[example, number, n] = logits_of(example, prefix)


def step(last, caches):
  """Reads the table; the caches are the example, the prefix and its length."""
  example, number, n = caches
  # The first token begins the sequence and is none of it.
  digit = jnp.where(n > 0, last[:, 0] * VOCABULARY ** jnp.maximum(n - 1, 0), 0)
  number = number + digit
  logits = jnp.asarray(TABLE)[example, number, n]
  return logits, (example, number, n + 1)


def reorder(caches, parents):
  b, k = parents.shape
  rows = (jnp.arange(b)[:, None] * k + parents).reshape(-1)
  return jax.tree.map(lambda v: v[rows], caches)


def search(beam, penalty, length=LENGTH):
  zeros = jnp.zeros(BATCH * beam, jnp.int32)
  caches = jnp.repeat(jnp.arange(BATCH), beam), zeros, zeros
  how = beam_search.Search(beam, length, penalty)
  first = jnp.full(BATCH, 2, jnp.int32)
  run = jax.jit(
    lambda: beam_search.search(step, reorder, caches, first, EOS, how)
  )
  return jax.device_get(run())


def everything(example, penalty):
  """Returns (score, tokens) of all sequences that end, the best first."""
  found = []
  for n in range(LENGTH):
    for prefix in itertools.product(range(1, VOCABULARY), repeat=n):
      total, sequence = 0.0, (*prefix, EOS)
      for i, token in enumerate(sequence):
        logits = np.array(logits_of(example, prefix[:i]))
        total += logits[token] - np.log(np.sum(np.exp(logits)))
      tokens = sequence + (EOS,) * (LENGTH - len(sequence))
      found.append((total / len(sequence) ** penalty, tokens))
  return sorted(found, reverse=True)


@pytest.mark.parametrize('penalty', [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_the_best_of_all(penalty):
  found = search(16, penalty)
  for example in range(BATCH):
    expected = everything(example, penalty)
    for i in range(3):
      assert tuple(found.tokens[example, i]) == expected[i][1]
      assert found.scores[example, i] == pytest.approx(expected[i][0], rel=1e-4)


def test_one_hypothesis_is_greedy():
  found, ended = search(1, 1.0), 0
  for example in range(BATCH):
    prefix = []
    for _ in range(LENGTH):
      token = int(np.argmax(logits_of(example, prefix)))
      prefix.append(token)
      if token == EOS:
        break
    ended += EOS in prefix
    tokens = prefix + [EOS] * (LENGTH - len(prefix))
    np.testing.assert_array_equal(found.tokens[example, 0], tokens)
  assert ended


def test_examples_do_not_depend_on_each_other():
  together = search(2, 1.0)
  for example in range(BATCH):
    zeros = jnp.zeros(2, jnp.int32)
    caches = jnp.full(2, example), zeros, zeros
    how = beam_search.Search(2, LENGTH, 1.0)
    first = jnp.full(1, 2, jnp.int32)
    alone = beam_search.search(step, reorder, caches, first, EOS, how)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[example])
