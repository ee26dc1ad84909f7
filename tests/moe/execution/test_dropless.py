"""The sum over wanted pairs against loops over tokens and experts."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import experts as experts_lib
from softmoe.moe import mlp
from softmoe.moe.execution import dropless, grouped_matmul
from softmoe.moe.execution import rounds as rounds_lib
from softmoe.plan import kernels

P = jax.P
D = 6
# Tokens, experts, rows of a chunk.
SHAPES = (
  (1, 1, 4),
  (1, 5, 8),
  (9, 1, 4),
  (37, 5, 8),
  (50, 7, 16),
  (33, 3, 128),
)


def draw(seed, m, e):
  rng = np.random.default_rng(seed)
  normal = lambda *s: rng.normal(size=s).astype(np.float32)
  rate = np.broadcast_to(rng.beta(0.3, 0.6, size=e), (m, e))
  wanted = rng.uniform(size=(m, e)) < rate
  if seed % 8 == 1:
    wanted[:] = False
  if seed % 8 == 2:
    wanted[:] = np.arange(e) == rng.integers(e)
  if seed % 8 == 3:
    wanted[:] = True
  if seed % 8 == 4:
    wanted[:, rng.integers(e, size=(e + 1) // 2)] = False
  params = dict(up=normal(e, D, 4), bias=normal(e, 4), down=normal(e, 4, 3))
  return params, normal(m, D), normal(m, e), wanted, normal(m, 3)


def expert(p, x):
  return jnp.tanh(x @ p['up'] + p['bias'][None]) @ p['down']


def gated_expert(p, x, gates):
  return (gates[:, None] * jnp.tanh(x @ p['up'] + p['bias'][None])) @ p['down']


def grouped_expert(p, rows, sizes):
  owner = jnp.repeat(
    jnp.arange(len(sizes)), sizes, total_repeat_length=len(rows)
  )
  h = grouped_matmul.grouped_matmul(rows, p['up'], sizes) + p['bias'][owner]
  return grouped_matmul.grouped_matmul(jnp.tanh(h), p['down'], sizes)


def plain(p, x, gates, wanted, dy):
  """Returns y and the gradients of params, x, gates, from float64 loops."""
  p, x, gates, dy = jax.tree.map(np.float64, (p, x, gates, dy))
  y, dx, dgates = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(gates.shape)
  dp = jax.tree.map(np.zeros_like, p)
  for t, e in zip(*np.nonzero(wanted), strict=True):
    h = np.tanh(x[t] @ p['up'][e] + p['bias'][e])
    out = h @ p['down'][e]
    y[t] += gates[t, e] * out
    dgates[t, e] = dy[t] @ out
    dh = gates[t, e] * (p['down'][e] @ dy[t]) * (1 - h**2)
    dx[t] += p['up'][e] @ dh
    dp['up'][e] += np.outer(x[t], dh)
    dp['bias'][e] += dh
    dp['down'][e] += np.outer(h, gates[t, e] * dy[t])
  return y, dp, dx, dgates


def both(apply):
  """Returns y and all gradients of apply(params, x, gates, wanted)."""

  @jax.jit
  def run(params, x, gates, wanted, dy):
    f = lambda *args: apply(*args, wanted)
    y, pull = jax.vjp(f, params, x, gates)
    return y, *pull(dy)

  return run


def room_for(rows, most):
  return rounds_lib.Room(min(rows, most), rows, most)


def forms(chunk):
  loop = functools.partial(dropless.apply, chunk=chunk)
  grouped = functools.partial(dropless.apply_grouped, grouped_expert)
  buffer = lambda *args: grouped(*args, room_for(args[-1].size, args[-1].size))
  rounds = lambda *args: grouped(*args, room_for(chunk, args[-1].size))
  return {
    'loop': both(functools.partial(loop, expert)),
    'gated': both(functools.partial(loop, gated_expert, gated=True)),
    'buffer': both(buffer),
    'rounds': both(rounds),
  }


def assert_equal(actual, expected, **tolerance):
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize('form', ['loop', 'gated', 'buffer', 'rounds'])
@pytest.mark.parametrize('m, e, chunk', SHAPES)
def test_equals_a_plain_loop(form, m, e, chunk):
  run = forms(chunk)[form]
  for seed in range(36):
    case = draw(seed, m, e)
    assert_equal(run(*case), plain(*case), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('form', ['loop', 'gated', 'buffer', 'rounds'])
def test_tokens_that_are_not_wanted_are_not_read(form):
  params, x, gates, wanted, dy = draw(0, 37, 5)
  wanted[[0, 11, 36]] = False
  run = forms(8)[form]
  expected = run(params, x, gates, wanted, dy)
  x[[0, 11, 36]] = np.nan
  gates = np.where(wanted, gates, np.nan)
  actual = run(params, x, gates, wanted, dy)
  assert_equal(actual, expected)


@pytest.mark.parametrize('form', ['loop', 'gated', 'buffer', 'rounds'])
def test_vmap_over_groups(form):
  params, *_ = draw(0, 37, 5)
  cases = [(params, *draw(seed, 37, 5)[1:]) for seed in (1, 2, 3, 5)]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *(c[1:] for c in cases))
  run = jax.vmap(forms(8)[form], in_axes=(None, 0, 0, 0, 0))
  actual = run(params, *stacked)
  for i, case in enumerate(cases):
    one = jax.tree.map(lambda a, i=i: a[i], actual)
    assert_equal(one, plain(*case), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'form',
  [
    'loop',
    pytest.param('buffer', marks=pytest.mark.slow),
    pytest.param('rounds', marks=pytest.mark.slow),
  ],
)
def test_scan_over_layers_and_remat(form):
  cases = [draw(seed, 37, 5) for seed in (0, 5, 6)]
  params, _, gates, wanted, _ = jax.tree.map(lambda *a: jnp.stack(a), *cases)
  x = cases[0][1]
  mix = np.full((3, D), 0.05, np.float32)  # keeps tanh away from its ends

  def one(p, x, gates, wanted):
    if form == 'loop':
      return dropless.apply(expert, p, x, gates, wanted, chunk=8)
    room = room_for(37 * 5 if form == 'buffer' else 16, 37 * 5)
    return dropless.apply_grouped(grouped_expert, p, x, gates, wanted, room)

  def dense(p, x, gates, wanted):
    every = jax.vmap(expert, (0, None))(p, x)
    return jnp.einsum('emd,me->md', every, jnp.where(wanted, gates, 0))

  def loss(params, gates, layer):
    step = lambda x, args: (x + layer(args[0], x, *args[1:]) @ mix, None)
    return jnp.sum(jax.lax.scan(step, x, (params, gates, wanted))[0] ** 2)

  grad = lambda layer: jax.jit(
    jax.value_and_grad(functools.partial(loss, layer=layer), argnums=(0, 1))
  )(params, gates)
  expected = grad(dense)
  scale = max(float(jnp.max(jnp.abs(a))) for a in jax.tree.leaves(expected[1]))
  for layer in (one, jax.checkpoint(one)):
    assert_equal(grad(layer), expected, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize('form', ['loop', 'gated', 'buffer', 'rounds'])
def test_bfloat16(form):
  params, x, gates, wanted, dy = draw(3, 50, 7)
  half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
  params, x, dy = half((params, x, dy))
  actual = forms(16)[form](params, x, gates, wanted, dy)
  single = lambda tree: jax.tree.map(lambda a: a.astype(np.float32), tree)
  expected = plain(single(params), single(x), gates, wanted, single(dy))
  y, dparams, dx, dgates = actual
  assert y.dtype == dx.dtype == dparams['up'].dtype == jnp.bfloat16
  assert dgates.dtype == jnp.float32
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    error = np.linalg.norm(np.float32(a) - b) / np.linalg.norm(b)
    assert error < 4 * 2**-8  # four roundings of an expert itself


@pytest.mark.parametrize('form', ['loop', 'buffer', 'rounds'])
def test_sums_of_bfloat16_are_in_float32(form):
  # In bfloat16, 256 + 1 is 256: 300 ones would add up to that.
  ones = lambda *shape: jnp.ones(shape, jnp.bfloat16)
  gates, wanted = jnp.ones((300, 300)), jnp.ones((300, 300), bool)
  if form == 'loop':
    apply = functools.partial(dropless.apply, lambda p, x: p[None, None] * x)
  else:
    room = room_for(300 * (300 if form == 'buffer' else 77), 300 * 300)
    apply = lambda p, x, gates, wanted: dropless.apply_grouped(
      lambda p, rows, sizes: rows, p, x, gates, wanted, room
    )
  y, dparams, dx, _ = both(apply)(
    ones(300), ones(300, 1), gates, wanted, ones(300, 1)
  )
  assert (y == 300).all() and (dx == 300).all()
  assert (dparams == 300).all() or form != 'loop'


def test_a_module_with_random_state_as_the_expert():
  class Noisy(nnx.Module):
    def __init__(self, rngs):
      self.mlp = mlp.Mlp(D, 4, rngs=rngs)
      self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
      return self.dropout(self.mlp(x))

  keys = jax.random.split(jax.random.key(0), 5)
  experts = jax.vmap(lambda key: Noisy(nnx.Rngs(key)))(keys)
  x, gates, wanted = map(jnp.asarray, draw(0, 37, 5)[1:4])
  graph, weights, state = nnx.split(experts, nnx.Param, ...)
  every = lambda w: jax.vmap(lambda m, x: m(x), (0, None))(
    nnx.merge(graph, w, state), x
  )
  dense = lambda w: jnp.einsum('emd,me->md', every(w), gates * wanted)
  loop = lambda w: dropless.apply(
    lambda m, x: m(x), nnx.merge(graph, w, state), x, gates, wanted, chunk=8
  )
  run = lambda f: jax.jit(lambda w: (f(w), jax.vjp(f, w)[1](x)))(weights)
  assert_equal(run(loop), run(dense), rtol=1e-4, atol=1e-4)


def test_split_over_data_in_shard_map(mesh):
  mesh(2, 1)
  params, x, gates, wanted, dy = draw(0, 38, 5)
  expected = plain(params, x, gates, wanted, dy)

  def local(params, x, gates, wanted, dy):
    params = jax.lax.pcast(params, 'data', to='varying')
    y, dp, dx, dgates = both(
      functools.partial(dropless.apply, expert, chunk=8)
    )(params, x, gates, wanted, dy)
    return y, jax.lax.psum(dp, 'data'), dx, dgates

  split = jax.device_put((x, gates, wanted, dy), P('data'))
  params = jax.device_put(params, P())
  run = jax.shard_map(
    local,
    in_specs=(P(), *[P('data')] * 4),
    out_specs=(P('data'), P(), P('data'), P('data')),
  )
  assert_equal(jax.jit(run)(params, *split), expected, rtol=1e-4, atol=1e-4)


def test_executed_counts_the_rows_that_experts_see():
  rows = []

  def spy(p, x):
    jax.debug.callback(rows.append, len(x))
    return expert(p, x)

  run = jax.jit(functools.partial(dropless.apply, spy, chunk=16))
  for seed in range(8):
    params, x, gates, wanted, _ = jax.tree.map(jnp.asarray, draw(seed, 50, 7))
    rows.clear()
    jax.block_until_ready(run(params, x, gates, wanted))
    jax.effects_barrier()
    executed = dropless.executed(wanted, chunk=16)
    assert sum(rows) == executed
    assert wanted.sum() <= executed <= wanted.sum() + 3 * 7
  assert dropless.executed(jnp.zeros((50, 7), bool)) == 0


def test_no_array_of_all_pairs_times_width():
  m, e, d = 512, 16, 64
  params, *_ = draw(0, 1, e)
  params['up'] = np.zeros((e, d, 4), np.float32)
  params['down'] = np.zeros((e, 4, d), np.float32)
  x = jax.ShapeDtypeStruct((m, d), jnp.float32)
  gates = jax.ShapeDtypeStruct((m, e), jnp.float32)
  wanted = jax.ShapeDtypeStruct((m, e), jnp.bool_)
  run = both(functools.partial(dropless.apply, expert))
  temporary = lambda f: (
    f.lower(params, x, gates, wanted, x)
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
  )
  pairs_times_width = 4 * m * e * d
  assert temporary(run) < pairs_times_width / 4
  dense = both(
    lambda p, x, gates, wanted: jnp.einsum(
      'emd,me->md', jax.vmap(expert, (0, None))(p, x), gates * wanted
    )
  )
  assert temporary(dense) >= pairs_times_width


def test_a_buffer_that_holds_all_pairs_needs_no_loop():
  params, x, gates, wanted, _ = jax.tree.map(jnp.asarray, draw(0, 9, 4))

  def text(*sizes):
    apply = lambda wanted: dropless.apply_grouped(
      lambda p, rows, sizes: rows, params, x, gates, wanted, room_for(*sizes)
    )
    return str(jax.make_jaxpr(apply)(wanted))

  assert 'while' not in text(18, 18)
  assert 'while' not in text(99, 36)
  assert 'while' in text(18, 36)


def loops(jaxpr):
  """Yields the loops of a program, and what is in them."""
  for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    if equation.primitive.name == 'while':
      yield equation
    for inner in kernels.jaxprs(equation.params):
      yield from loops(inner)


@pytest.mark.slow
def test_rounds_read_weights_in_the_type_of_the_computation():
  _, x, gates, wanted, _ = jax.tree.map(jnp.asarray, draw(3, 32, 4))
  create = lambda rngs: mlp.Mlp(D, 8, dtype=jnp.bfloat16, rngs=rngs)
  stacked = experts_lib.Experts(create, 4, rngs=nnx.Rngs(0)).stacked

  def run(stacked, rows):
    return dropless.apply_grouped(
      lambda stacked, *rows: stacked.grouped(*rows),
      *(stacked, x.astype(jnp.bfloat16), gates, wanted, room_for(rows, 128)),
    )

  loss = lambda stacked, rows: jnp.sum(run(stacked, rows).astype(jnp.float32))
  weights = [
    value.aval
    for loop in loops(jax.make_jaxpr(run, static_argnums=1)(stacked, 16))
    for value in loop.invars
    if value.aval.shape in ((4, D, 8), (4, 8, D))
  ]
  assert weights and all(each.dtype == jnp.bfloat16 for each in weights)
  once = jax.grad(loss)(stacked, 128)
  for a, b in zip(
    jax.tree.leaves(jax.grad(loss)(stacked, 16)),
    jax.tree.leaves(once),
    strict=True,
  ):
    assert a.dtype == jnp.float32
    assert np.linalg.norm(a - b) < 4 * 2**-8 * np.linalg.norm(b)


@pytest.mark.parametrize('chunk', [0, -4, 6])
def test_wrong_chunk(chunk):
  params, x, gates, wanted, _ = jax.tree.map(jnp.asarray, draw(0, 9, 4))
  with pytest.raises(ValueError, match=f'chunk: got {chunk}; a positive mult'):
    dropless.apply(expert, params, x, gates, wanted, chunk=chunk)
  with pytest.raises(ValueError, match='chunk'):
    dropless.executed(wanted, chunk=chunk)
