"""Weights in tiles against weights that are all there, and what they cost."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe.moe.execution import attend
from softmoe.moe.routers import soft

QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
GROUPS, TOKENS, SLOTS, WIDTH = 3, 10, 13, 4


def draw(dtype=jnp.float32):
  """Returns x, factors of tokens and slots, a mask, and weights of results."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  mask = rng.random((GROUPS, TOKENS)) < 0.6
  mask[0], mask[1] = False, True
  x = normal(GROUPS, TOKENS, WIDTH).astype(dtype)
  tokens, slots = normal(GROUPS, TOKENS, 5), 2 * normal(SLOTS, 5)
  wanted = normal(GROUPS, SLOTS, WIDTH), normal(GROUPS, TOKENS, WIDTH)
  return (x, tokens, slots), jnp.asarray(mask), wanted


def at_once(x, tokens, slots, mask):
  logits = jnp.einsum('gmk,nk->gmn', tokens, slots)
  into = soft.over_tokens(logits, mask)
  back = jax.nn.softmax(logits, axis=2)
  filled = jnp.einsum('gmd,gmn->gnd', x, into.astype(x.dtype))
  y = jnp.einsum('gnd,gmn->gmd', jnp.sin(filled), back.astype(x.dtype))
  return (filled, y), (jnp.max(into, axis=1), jnp.max(back, axis=2))


def in_tiles(x, tokens, slots, mask):
  filled = attend.dispatch(x, tokens, slots, mask)
  y = attend.combine(jnp.sin(filled.mean), tokens, slots)
  return (filled.mean, y.mean), (filled.peak, y.peak)


def gradients(f, factors, mask, wanted):
  def value(factors):
    found, peaks = f(*factors, mask)
    return sum(jnp.sum(w * v) for w, v in zip(wanted, found, strict=True)), (
      found,
      peaks,
    )

  run = jax.jit(jax.grad(value, has_aux=True), compiler_options=QUICK)
  return jax.device_get(run(factors))


@functools.cache
def expected(masked):
  factors, mask, wanted = draw()
  return gradients(at_once, factors, mask if masked else None, wanted)


# Tiles of one row, that divide nothing, some, and all rows at once.
@pytest.mark.parametrize(
  ('tile', 'masked'), [(1, True), (4, True), (4, False), (5, True), (99, True)]
)
def test_equals_weights_that_are_all_there(monkeypatch, tile, masked):
  monkeypatch.setattr(attend, 'TILE', tile)
  factors, mask, wanted = draw()
  actual = gradients(in_tiles, factors, mask if masked else None, wanted)
  assert_close(actual, expected(masked))


def test_a_group_of_padding_alone_gets_0_and_has_gradients_of_0(monkeypatch):
  monkeypatch.setattr(attend, 'TILE', 4)
  (x, tokens, slots), mask, _ = draw()
  assert not np.any(mask[0])
  value = lambda *factors: jnp.sum(attend.dispatch(*factors, mask).mean[0])
  found, pulled = jax.value_and_grad(value, (0, 1, 2))(x, tokens, slots)
  assert found == 0
  assert all(np.all(np.asarray(g) == 0) for g in pulled)


def test_logits_of_any_size_overflow_nowhere(monkeypatch):
  monkeypatch.setattr(attend, 'TILE', 4)
  (x, tokens, slots), mask, wanted = draw()
  factors = x, 1e3 * tokens, 1e3 * slots
  found = gradients(in_tiles, factors, mask, wanted)
  assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves(found))


def test_the_logarithm_of_the_sum_and_its_gradient(monkeypatch):
  monkeypatch.setattr(attend, 'TILE', 4)
  (_, tokens, slots), _, (y, wanted) = draw()
  wanted = wanted[..., 0]

  def value(of, *factors):
    return jnp.sum(wanted * of(*factors))

  tiles = lambda t, s: attend.combine(y, t, s).log_sum
  whole = lambda t, s: jax.nn.logsumexp(jnp.einsum('gmk,nk->gmn', t, s), 2)
  actual, right = (
    jax.value_and_grad(functools.partial(value, of), (0, 1))(tokens, slots)
    for of in (tiles, whole)
  )
  assert_close(actual, right)


def test_results_have_the_type_of_the_values(monkeypatch):
  monkeypatch.setattr(attend, 'TILE', 4)
  factors, mask, wanted = draw(jnp.bfloat16)
  (dx, dtokens, _), (found, _) = gradients(in_tiles, factors, mask, wanted)
  assert {v.dtype for v in (*found, dx)} == {jnp.dtype(jnp.bfloat16)}
  assert dtokens.dtype == jnp.float32
  (right, *_), (all_there, _) = expected(True)
  for a, e in ((dx, right), *zip(found, all_there, strict=True)):
    size = np.max(np.abs(e))
    np.testing.assert_allclose(a.astype(np.float32), e, atol=0.03 * size)


def temporaries(f, rows, backward):
  """Returns the bytes that a program sets aside, of as many slots as tokens."""
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  of = lambda *a: sum(jnp.sum(jnp.sin(v)) for v in f(*a, None)[0])
  run = jax.grad(of, (0, 1, 2)) if backward else of
  factors = shape(1, rows, 64), shape(1, rows, 64), shape(rows, 64)
  program = jax.jit(run).lower(*factors).compile(compiler_options=QUICK)
  return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('backward', [False, True])
def test_memory_grows_with_tokens_and_not_with_pairs(backward):
  few, many = (temporaries(in_tiles, n, backward) for n in (4096, 16384))
  assert many < 4 * few
  assert many < 16384**2 * 4 / 8  # an eighth of one array of weights


def assert_close(actual, right):
  def one(a, e):
    size = max(1, np.max(np.abs(e)))
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * size)

  jax.tree.map(one, actual, right)
