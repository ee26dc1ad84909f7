"""Outputs handed to the next piece: documents, the future, caches, meshes."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import experts, layer, mlp, routing
from softmoe.moe.routers import segment_soft, soft
from tests.moe import layer_cases, layer_loops
from tests.moe.layer_cases import QUICK

P = jax.P
NAME, PIECE = 'segment_soft', layer_cases.CASES['segment_soft']['segment']
MESHES = [None, (1, 1), (2, 4), (4, 2)]
BATCH, TOKENS = 8, 7
SHAPE = BATCH, TOKENS, 6, 8, 7  # width, experts, hidden width


def draw(seed):
  """Returns a case, and documents of the tokens that come in order."""
  rng = np.random.default_rng(seed)
  starts = rng.random((BATCH, TOKENS)) < 0.3
  documents = np.cumsum(starts, axis=1, dtype=np.int32)
  return layer_cases.draw(NAME, SHAPE, seed), documents


def merged(params):
  return nnx.merge(nnx.graphdef(layer_cases.make(NAME, SHAPE)), params)


@functools.cache
def compiled(method='__call__'):
  """Returns the layer as a function, compiled for each mesh and shape."""
  return jax.jit(
    lambda params, x, mask, **options: getattr(merged(params), method)(
      x, mask, **options
    ),
    compiler_options=QUICK,
  )


@jax.jit
def gradients(params, x, mask, segments, dy):
  def objective(params, x):
    y, _ = merged(params)(x, mask, segments=segments)
    return jnp.sum(y * dy), y

  return jax.grad(objective, (0, 1), has_aux=True)(params, x)


def place(tree, spec):
  return jax.tree.map(lambda v: jax.device_put(v, spec), tree)


def placed(params):
  spec = lambda name: P('expert') if name == 'experts' else P()
  return {name: place(tree, spec(name)) for name, tree in params.items()}


def assert_close(actual, expected):
  def one(a, e):
    size = max(1, np.max(np.abs(e)))
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * size)

  jax.tree.map(one, actual, expected)


# --- What is computed.


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_documents_equal_loops_forward_and_gradient(mesh, sizes):
  if sizes:
    mesh(*sizes)
  for seed in range(3):
    case, segments = draw(seed)
    y, _, expected = layer_loops.by_loops_of(NAME, SHAPE, case, segments)
    params, x, mask, _, _, dy = case
    tokens = x, mask, segments, dy
    if sizes:
      params, tokens = placed(params), place(tokens, P(('data', 'expert')))
    actual, actual_y = gradients(params, *tokens)
    assert_close((actual_y, actual), (y, expected))


def test_a_piece_that_is_repeated_gets_what_soft_moe_gives_it():
  def run(piece):
    rngs = nnx.Rngs(0)
    sizes = dict(num_experts=4, slots_per_expert=2, scale_init=5.0)
    plain = layer.SoftMoE(6, mlp_dim=8, rngs=rngs, **sizes)
    router = segment_soft.SegmentSoft(6, segment=5, rngs=rngs, **sizes)
    router.phi, router.scale = plain.router.phi, plain.router.scale
    ours = layer.MoE(router, plain.experts)
    return plain(piece)[0], ours(jnp.concatenate([piece, piece], axis=1))[0]

  piece = jax.random.normal(jax.random.key(1), (3, 5, 6))
  expected, y = jax.jit(run, compiler_options=QUICK)(piece)
  np.testing.assert_array_equal(y[:, :5], 0)
  np.testing.assert_allclose(y[:, 5:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('documents', [False, True])
def test_the_future_does_not_leak(documents):
  run = compiled()
  for seed in range(3):
    (params, x, mask, *_), segments = draw(seed)
    (_, other, other_mask, *_), other_segments = draw(seed + 50)
    options = lambda v: {'segments': v} if documents else {}
    before, _ = run(params, x, mask, **options(segments))
    for i in range(TOKENS):
      mix = lambda old, new, i=i: np.concatenate(
        [old[:, : i + 1], new[:, i + 1 :]], axis=1
      )
      after, _ = run(
        params,
        mix(x, np.nan * other if i % 2 else other),
        mix(mask, other_mask & (i % 2 == 0)),
        **options(mix(segments, other_segments)),
      )
      np.testing.assert_allclose(
        after[:, : i + 1], before[:, : i + 1], rtol=1e-6, atol=1e-6
      )


def test_a_document_depends_on_no_other():
  run = compiled()
  (params, x, mask, *_), segments = draw(0)
  before, _ = run(params, x, mask, segments=segments)
  for document in range(3):
    own = segments == document
    after, _ = run(
      params, np.where(own[..., None], x, -x), mask, segments=segments
    )
    np.testing.assert_allclose(after[own], before[own], rtol=1e-6, atol=1e-6)


def test_route_says_who_reads_what():
  (params, x, mask, *_), segments = draw(1)
  routed = compiled('route')(params, x, mask, segments=segments)
  assert routed.dispatch.shape == routed.combine.shape == (*x.shape[:2], 8, 2)
  reads = np.any(np.asarray(routed.combine) > 0, axis=(2, 3))
  y, _ = compiled()(params, x, mask, segments=segments)
  shared = merged(params).shared(jnp.where(mask[..., None], x, 0))
  routed_to = np.any(np.abs(y - shared) > 1e-6, axis=-1)
  np.testing.assert_array_equal(routed_to[mask], reads[mask])
  assert not np.any(reads[:, :PIECE]) and np.any(reads)


# --- Caches.


def decode(params, x, mask, segments, sizes, cache):
  """Returns outputs of calls with so many tokens each, and the last aux."""
  run, outputs, start, aux = compiled(), [], 0, {}
  for size in sizes:
    part = lambda v, at=slice(start, start + size): v[:, at]
    y, aux = run(
      params, part(x), part(mask), segments=part(segments), cache=cache
    )
    cache, start = aux['cache'], start + size
    outputs.append(y)
  return jnp.concatenate(outputs, axis=1), aux


CALLS = [[1] * TOKENS, [2] + [1] * 5, [3, 1, 3], [6, 1], [TOKENS], [1, 6]]


@pytest.mark.parametrize('sizes', CALLS, ids=str)
def test_a_cache_goes_on_as_if_all_were_one(sizes):
  for seed in range(3):
    (params, x, mask, *_), segments = draw(seed)
    expected, _ = compiled()(params, x, mask, segments=segments)
    cache = merged(params).init_cache(BATCH)
    y, aux = decode(params, x, mask, segments, sizes, cache)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert np.all(aux['cache'].length == TOKENS % PIECE)
    same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)
    assert jax.tree.all(jax.tree.map(same, aux['cache'], cache))


@pytest.mark.parametrize(
  ('batch', 'sizes', 'axes'),
  [
    (1, (1, 1), ()),
    (1, (2, 4), ()),
    (1, (8, 1), ()),
    (2, (2, 4), ('data',)),
    (8, (2, 4), ('data', 'expert')),
  ],
  ids=str,
)
def test_decoding_on_a_mesh(mesh, batch, sizes, axes):
  (params, *tokens, _, _, _), segments = draw(0)
  expected, _ = compiled()(params, *tokens, segments=segments)
  mesh(*sizes)
  tokens = place([v[:batch] for v in (*tokens, segments)], P(axes or None))
  params = placed(params)
  cache = merged(params).init_cache(batch)
  y, aux = decode(params, *tokens, [1] * 4, cache)  # twice a piece is full
  np.testing.assert_allclose(y, expected[:batch, :4], rtol=1e-5, atol=1e-5)
  same = lambda a, b: jax.typeof(a) == jax.typeof(b)  # a loop can carry it
  assert jax.tree.all(jax.tree.map(same, aux['cache'], cache))


def test_experts_run_where_a_piece_becomes_full_and_nowhere_else():
  (params, x, *_), segments = draw(0)
  mask = np.ones(x.shape[:2], bool)
  cache, executed = merged(params).init_cache(BATCH), []
  for i in range(TOKENS):
    _, aux = decode(
      *(params, *(v[:, i:] for v in (x, mask, segments))), [1], cache
    )
    cache = aux['cache']
    executed.append(float(aux['metrics']['executed']))
  assert executed == [16.0 * (i % PIECE == PIECE - 1) for i in range(TOKENS)]


# --- Bad input.


class Sparse(nnx.Module):
  segment, num_experts = 2, 4

  def __call__(self, x, *, mask=None, key=None):
    gates = jnp.ones((len(x), 4))
    return routing.Assignment(gates, gates), routing.Aux()


def make(create, **options):
  """Returns a layer whose parameters are shapes without numbers."""
  expert = lambda rngs: mlp.Mlp(6, 8, rngs=rngs)
  return nnx.eval_shape(
    lambda: layer.MoE(
      create(), experts.Experts(expert, 4, rngs=nnx.Rngs(0)), **options
    )
  )


def call(module, **options):
  x = jax.ShapeDtypeStruct((2, 3, 6), jnp.float32)
  jax.eval_shape(lambda module, x: module(x, **options), module, x)


def test_bad_input_is_told():
  ours = lambda size=2: segment_soft.SegmentSoft(
    6, 4, segment=size, rngs=nnx.Rngs(0)
  )
  with pytest.raises(ValueError, match='segment: got 0; at least 1'):
    make(lambda: ours(0))
  with pytest.raises(ValueError, match='group_size: got 2; 1, since'):
    make(ours, group_size=2)
  with pytest.raises(ValueError, match="router: got 'Assignment'; Slots of"):
    call(make(Sparse))
  module = make(lambda: soft.SoftRouter(6, 4, rngs=nnx.Rngs(0)))
  assert module.init_cache(2) is None
  with pytest.raises(ValueError, match="cache: got 'one'; None, since"):
    call(module, cache=make(ours).init_cache(2))
  with pytest.raises(ValueError, match="cache: got '3 examples'; 2, as many"):
    call(make(ours), cache=make(ours).init_cache(3))
