"""Attention against loops: who sees whom, gradients, meshes, a cache."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import attention
from tests.models import attention_loops as loops
from tests.models.attention_cases import (
  CASES,
  HEADS,
  MASK,
  SEGMENTS,
  B,
  N,
  arrays,
  draw_tokens,
  exact,
  make,
  sees,
)

NAMES = ('plain', 'xla')
POSITIONS = np.array([[0, 1, 2, 0, 1, 2]] * 2 + [[0, 0, 1, 5, 7, 9]] * 2)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('case', CASES)
def test_equals_loops(name, case):
  _, params, layer = make(attention=name)
  x, arguments = draw_tokens(), CASES[case]
  y, cache = layer(x, **arrays(arguments))
  assert cache is None
  np.testing.assert_allclose(
    y, exact(params, x, arguments), rtol=1e-5, atol=1e-5
  )
  if case == 'mask':  # nothing read: nothing but the bias is left
    bias = np.broadcast_to(params['out']['bias'], y[3].shape)
    np.testing.assert_array_equal(y[3], bias)


@pytest.mark.parametrize('positions', [None, POSITIONS])
def test_rotary_equals_loops(positions):
  _, params, layer = make(positions='rotary')
  x = draw_tokens()
  weights = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
  given = [range(N)] * B if positions is None else positions
  expected = [
    loops.layer(weights, row, HEADS, sees(b, causal=True), given[b])
    for b, row in enumerate(np.asarray(x, np.float64))
  ]
  places = None if positions is None else jnp.asarray(positions)
  y, _ = layer(x, causal=True, positions=places)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_memory_is_not_rotated():
  x, memory = draw_tokens(2), draw_tokens(5)
  mask = jnp.asarray(MASK[:, :5])
  plain, _ = make()[2](x, memory, mask=mask)
  rotary, _ = make(positions='rotary')[2](x, memory, mask=mask)
  np.testing.assert_array_equal(plain, rotary)
  assert np.any(plain != make()[2](x, memory)[0])


def naive(query, key, value, visible):
  """Attends in a form without NaN wherever each query reads something."""
  logits = jnp.einsum('bhqk,bhnk->bhqn', query, key) / query.shape[-1] ** 0.5
  weights = jnp.exp(logits) * visible
  weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
  return jnp.einsum('bhqn,bhnk->bhqk', weights, value)


def draw_heads():
  draw = lambda i: jax.random.normal(jax.random.key(i), (2, HEADS, N, 4))
  return draw(0), draw(1), draw(2), draw(3)


def gradients(attend, weight, *heads):
  loss = lambda *heads: jnp.sum(attend(*heads) * weight)
  return jax.jit(jax.grad(loss, (0, 1, 2)))(*heads)


@pytest.mark.parametrize('name', NAMES)
def test_gradients(name):
  *heads, weight = draw_heads()
  mask = jnp.asarray(MASK[:2])[:, None, None]
  sees = np.asarray(mask) & np.tri(N, dtype=bool)
  attend = functools.partial(
    attention.attend, visible=mask, causal=True, implementation=name
  )
  expected = gradients(
    functools.partial(naive, visible=jnp.asarray(sees)), weight, *heads
  )
  for actual, right in zip(
    gradients(attend, weight, *heads), expected, strict=True
  ):
    np.testing.assert_allclose(actual, right, rtol=1e-5, atol=1e-5)


def test_gradients_in_bfloat16():
  *heads, weight = draw_heads()
  half = [x.astype(jnp.bfloat16) for x in heads]
  attend = functools.partial(attention.attend, causal=True)
  expected = gradients(attend, weight, *heads)
  for actual, right in zip(
    gradients(attend, weight, *half), expected, strict=True
  ):
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype('f'), right, atol=0.03)


@pytest.mark.parametrize('name', NAMES)
def test_nothing_to_see_is_zero_with_finite_gradients(name):
  *heads, weight = draw_heads()
  visible = jnp.asarray(np.arange(2) > 0)[:, None, None, None]
  visible = jnp.broadcast_to(visible, (2, 1, 1, N))
  attend = functools.partial(
    attention.attend, visible=visible, implementation=name
  )
  y = attend(*heads)
  assert not np.any(y[0]) and np.all(y[1] != 0)
  for gradient in gradients(attend, weight, *heads):
    assert not np.any(gradient[0]) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize('name', NAMES)
def test_on_a_mesh(mesh, name):
  layer = make(attention=name, positions='rotary')[2]
  x, arguments = draw_tokens(), arrays(CASES['everything'])
  expected, _ = layer(x, **arguments)
  spec = jax.P(('data', 'fsdp', 'expert'))
  mesh(2, 2)
  layer = jax.tree.map(lambda w: jax.device_put(w, jax.P()), layer)
  place = lambda v: v if isinstance(v, bool) else jax.device_put(v, spec)
  run = lambda layer, x, arrays: layer(x, causal=True, **arrays)[0]
  del arguments['causal']
  y = jax.jit(run)(layer, place(x), jax.tree.map(place, arguments))
  assert jax.typeof(y).sharding.spec[0] == spec[0]
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  grown = jax.jit(decode, static_argnums=(1, 3))(
    layer, make()[0], place(x), (4, 1, 1)
  )
  causal, _ = layer(place(x), causal=True)
  assert jax.typeof(grown).sharding.spec[0] == spec[0]
  np.testing.assert_allclose(grown, causal, rtol=1e-5, atol=1e-6)


def decode(layer, config, x, pieces):
  """Returns the outputs of `x`, read in pieces."""
  cache, outputs, start = attention.init_cache(config, len(x), N + 2), [], 0
  for size in pieces:
    y, cache = layer(x[:, start : start + size], causal=True, cache=cache)
    outputs.append(y)
    start += size
  return jnp.concatenate(outputs, axis=1)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('positions', ['none', 'rotary'])
@pytest.mark.parametrize('pieces', [(1,) * N, (3, 1, 2)])
def test_token_by_token_is_the_causal_pass(name, positions, pieces):
  config, _, layer = make(attention=name, positions=positions)
  x = draw_tokens()
  expected, _ = layer(x, causal=True)
  y = decode(layer, config, x, pieces)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_prompts_of_several_lengths():
  """Left of a short prompt is padding, which is masked; positions say where."""
  config, _, layer = make(positions='rotary')
  x = draw_tokens(b=2)
  short, _ = layer(x[1:, 2:], causal=True)
  pad = jnp.asarray([0, 2])[:, None]
  mask = jnp.arange(N)[None] >= pad
  positions = jnp.arange(N)[None] - pad
  cache = attention.init_cache(config, 2, N)
  _, cache = layer(
    x[:, :4], causal=True, mask=mask, positions=positions[:, :4], cache=cache
  )
  y, cache = layer(
    x[:, 4:], causal=True, mask=mask, positions=positions[:, 4:], cache=cache
  )
  assert cache.length == N
  np.testing.assert_allclose(y[1:], short[:, 2:], rtol=1e-5, atol=1e-5)


def test_a_cache_without_causal_shows_a_piece_to_itself():
  config, _, layer = make()
  x = draw_tokens(3)
  y, _ = layer(x, cache=attention.init_cache(config, B, N))
  np.testing.assert_allclose(y, layer(x)[0], rtol=1e-5, atol=1e-6)


def test_bfloat16_has_its_softmax_in_float32():
  *heads, _ = draw_heads()
  half = [v.astype(jnp.bfloat16) for v in heads]
  results = [attention.attend(*half, implementation=name) for name in NAMES]
  exact = attention.attend(*(v.astype(jnp.float32) for v in half))
  for y in results:
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02)


def test_choice():
  assert attention.choose('plain', 'tpu') == 'plain'
  assert attention.choose('xla', 'cpu') == 'xla'
  with pytest.raises(UserError, match="attention: got 'cudnn'; 'plain"):
    attention.choose('cudnn', 'cuda')  # a GPU to compile for is not one here
  with pytest.raises(UserError, match="attention: got 'fast'; one of"):
    attention.choose('fast', 'cpu')


def test_cudnn_needs_a_mesh_of_live_gpus(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert attention.choose('cudnn', 'gpu') == 'cudnn'
  for platform in ('cpu', 'tpu'):
    with pytest.raises(UserError, match="got 'cudnn'"):
      attention.choose('cudnn', platform)


def test_pallas_needs_an_accelerator():
  for platform in ('tpu', 'gpu', 'cuda'):
    assert attention.choose('pallas', platform) == 'pallas'
  with pytest.raises(UserError, match="got 'pallas'; 'plain' or 'xla' on a C"):
    attention.choose('pallas', 'cpu')


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(memory=True, causal=True), 'causal: got True; False beside a memory'),
    (dict(memory=True, segments=True), 'segments: got .* beside a memory'),
    (dict(memory=True, cache=9), 'cache: got .* beside a memory'),
    (dict(segments=True, cache=9), 'segments: got .* beside a cache'),
    (dict(cache=5), 'x: got .6 tokens.; at most the 5 of the cache'),
  ],
)
def test_what_has_no_meaning_is_named(arguments, message):
  config, _, layer = make()
  x = draw_tokens()
  make_one = dict(
    memory=lambda _: x,
    segments=lambda _: jnp.asarray(SEGMENTS),
    cache=lambda n: attention.init_cache(config, B, n),
    causal=lambda v: v,
  )
  with pytest.raises(UserError, match=message):
    layer(x, **{name: make_one[name](v) for name, v in arguments.items()})
