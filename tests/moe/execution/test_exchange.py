"""Rows that go to other devices, against NumPy, and back."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe import sharding
from softmoe.moe.execution import exchange, rounds

P = jax.P
MESHES = [(1, 2), (1, 4), (2, 2)]
SPLIT = P(sharding.AXES)
ROWS, WIDTH, EXPERTS = 6, 3, 2  # of a device
KINDS = ('random', 'sparse', 'all to one', 'nothing', 'full')


def draw_sent(kind, devices, seed):
  """Returns how many rows each device sends to each, (from, to)."""
  rng = np.random.default_rng(seed)
  sent = np.zeros((devices, devices), np.int32)
  if kind == 'all to one':
    sent[:, rng.integers(devices)] = ROWS
  if kind in ('random', 'sparse', 'full'):
    few = 0 if kind == 'full' else 1  # rows that stay at home
    rate = np.full(devices + few, 0.2 if kind == 'sparse' else 3)
    for i in range(devices):
      sent[i] = rng.multinomial(ROWS, rng.dirichlet(rate))[:devices]
  return sent


def draw_floats(seed, *shapes):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def send(rows, sent, max_rows):
  """Returns the inboxes of all devices, by slices."""
  inbox = np.zeros((len(rows), max_rows, *rows.shape[2:]), rows.dtype)
  for j in range(len(rows)):
    parts = []
    for i in range(len(rows)):
      begin = sum(sent[i, :j])
      parts.append(rows[i, begin : begin + sent[i, j]])
    parts = np.concatenate(parts)
    inbox[j, : len(parts)] = parts
  return inbox


def send_back(inbox, sent, num_rows):
  """Returns the transpose of `send`: what the senders get back."""
  rows = np.zeros((len(inbox), num_rows, *inbox.shape[2:]), inbox.dtype)
  for i, j in np.ndindex(sent.shape):
    here, there = sum(sent[i, :j]), sum(sent[:i, j])
    n = sent[i, j]
    rows[i, here : here + n] = inbox[j, there : there + n]
  return rows


@functools.cache
def exchanged(sizes, max_rows):
  """Returns a compiled exchange, with its gradient; the mesh is in force."""

  def local(rows, sent):
    sent = jax.lax.all_gather(sent, 'expert')
    before = lambda v, axis: jnp.cumsum(v, axis) - v
    moves = exchange.Moves(sent, before(sent, 1), before(sent, 0))
    return exchange.ragged_all_to_all(rows, moves, max_rows, 'expert')

  run = jax.shard_map(local, in_specs=(SPLIT, SPLIT), out_specs=SPLIT)

  @jax.jit
  def call(rows, sent, dy):
    y, pull = jax.vjp(lambda rows: run(rows, sent), rows)
    return y, pull(dy)[0]

  return call


def on_devices(*values):
  """Returns arrays (data, expert, ...) with a part on each device."""
  merge = lambda v: v.reshape(-1, *v.shape[3:])
  return [jax.device_put(merge(np.asarray(v)), SPLIT) for v in values]


def check(sizes, kind, seed):
  data, devices = sizes
  sent = np.stack([draw_sent(kind, devices, (seed, i)) for i in range(data)])
  most = int(np.max(np.sum(sent, axis=1)))
  max_rows = ROWS * devices if kind != 'full' else max(most, 1)
  rows, dy = draw_floats(seed, (*sizes, ROWS, WIDTH), (*sizes, max_rows, WIDTH))
  y, drows = exchanged(sizes, max_rows)(*on_devices(rows, sent, dy))
  expected = [send(r, s, max_rows) for r, s in zip(rows, sent, strict=True)]
  back = [send_back(d, s, ROWS) for d, s in zip(dy, sent, strict=True)]
  np.testing.assert_array_equal(y, on_devices(np.stack(expected))[0])
  np.testing.assert_array_equal(drows, on_devices(np.stack(back))[0])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_rows_and_their_gradients_arrive(mesh, sizes, kind):
  mesh(*sizes)
  for seed in range(2 if kind == 'full' else 20):
    check(sizes, kind, seed)


def documented(
  operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *,
  axis_name,
):  # fmt: skip
  """Does what `jax.lax.ragged_all_to_all` is documented to do, anywhere."""
  gather = lambda v: jax.lax.all_gather(v, axis_name)
  me = jax.lax.axis_index(axis_name)
  operands, starts, sizes, targets = map(
    gather, (operand, input_offsets, send_sizes, output_offsets)
  )
  row = jnp.arange(len(output))
  for i in range(len(operands)):
    start, size, target = starts[i, me], sizes[i, me], targets[i, me]
    size = jnp.where(size == recv_sizes[i], size, -1)  # else undefined
    source = jnp.clip(start + row - target, 0, len(operand) - 1)
    inside = (target <= row) & (row < target + size)
    output = jnp.where(inside[:, None], operands[i][source], output)
    output = jnp.where(size < 0, jnp.nan, output)
  return output


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_arguments_of_the_collective(mesh, monkeypatch, sizes):
  mesh(*sizes)
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  monkeypatch.setattr(jax.lax, 'ragged_all_to_all', documented)
  exchanged.cache_clear()
  try:
    for seed, kind in enumerate(KINDS):
      check(sizes, kind, seed)
  finally:
    exchanged.cache_clear()


def draw_groups(kind, sizes, seed):
  """Returns how many rows each device has for each expert."""
  rng = np.random.default_rng(seed)
  data, devices = sizes
  counts = np.zeros((data, devices, devices * EXPERTS), np.int32)
  for i, j in np.ndindex(data, devices):
    sent = draw_sent(kind, devices, (seed, i))[j]
    for owner, n in enumerate(sent):
      share = rng.dirichlet(np.full(EXPERTS, 0.3))
      part = slice(owner * EXPERTS, (owner + 1) * EXPERTS)
      counts[i, j, part] = rng.multinomial(n, share)
  return counts


def multiply(w, rows, sizes):
  """Returns rows times the matrix of their expert, and junk past the last."""
  owner = jnp.repeat(jnp.arange(len(w)), sizes, total_repeat_length=len(rows))
  y = jnp.tanh(jnp.einsum('nd,ndf->nf', rows, w[owner]))
  real = jnp.arange(len(rows)) < jnp.sum(sizes)
  return jnp.where(real[:, None], y, 9)


@functools.cache
def at_owners(sizes, num_rows):
  def local(w, rows, counts):
    w = jax.lax.pcast(w, 'data', to='varying')
    most = sizes[1] * ROWS
    moved = exchange.gather_sizes(counts, 'expert')

    def run(start, num_rows, arguments):
      w, rows, moved = arguments
      fn = functools.partial(multiply, w)
      return exchange.at_owners(fn, rows, moved, start, num_rows, 'expert')

    room = rounds.Room(num_rows or most, ROWS, most)
    fullest = exchange.fullest(moved)
    return rounds.total(run, room, fullest, (w, rows, moved))

  return with_gradients(
    jax.shard_map(local, in_specs=(P('expert'), SPLIT, SPLIT), out_specs=SPLIT)
  )


def with_gradients(run):
  @jax.jit
  def call(w, rows, counts, dy):
    y, pull = jax.vjp(lambda w, rows: run(w, rows, counts), w, rows)
    return y, *pull(dy)

  return call


@jax.jit
def on_one_device(w, rows, counts, dy):
  """Returns the sum over devices of what `multiply` does with all experts."""

  def run(w, rows, counts):
    y = multiply(w, rows, counts)
    return jnp.where((jnp.arange(len(rows)) < jnp.sum(counts))[:, None], y, 0)

  def all_devices(w, rows):
    return jax.vmap(run, (None, 0, 0))(w, rows, counts)

  y, pull = jax.vjp(all_devices, w, rows)
  return y, *pull(dy)


@pytest.mark.parametrize('num_rows', [None, 7, 2])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_experts_work_where_they_are(mesh, sizes, kind, num_rows):
  draws = []
  for seed in range(6):
    counts = draw_groups(kind, sizes, seed)
    w, rows, dy = draw_floats(
      seed,
      (sizes[1] * EXPERTS, WIDTH, 2),
      (*sizes, ROWS, WIDTH),
      (*sizes, ROWS, 2),
    )
    flat = [v.reshape(-1, *v.shape[2:]) for v in (rows, counts, dy)]
    draws.append((w, rows, counts, dy, on_one_device(w, *flat)))
  mesh(*sizes)
  for w, rows, counts, dy, expected in draws:
    actual = at_owners(sizes, num_rows)(
      jax.device_put(w, P('expert')), *on_devices(rows, counts, dy)
    )
    for a, e in zip(actual, expected, strict=True):
      np.testing.assert_allclose(
        a, np.asarray(e).reshape(a.shape), rtol=1e-5, atol=1e-6
      )


def whole(f):
  """Returns f on rows of the experts of the mesh's four devices."""

  def apply(rows, sizes):
    moved = exchange.gather_sizes(sizes, 'expert')
    first, fn = jnp.zeros_like(moved[0, 0, 0]), lambda rows, _: f(rows)
    return exchange.at_owners(fn, rows, moved, first, 4 * ROWS, 'expert')

  return apply


def test_there_and_back_is_the_identity(mesh):
  sizes = (2, 4)
  mesh(*sizes)
  apply = whole(lambda rows: rows)
  run = jax.jit(jax.shard_map(apply, in_specs=(SPLIT,) * 2, out_specs=SPLIT))
  for seed, kind in enumerate(KINDS):
    counts = draw_groups(kind, sizes, seed)
    (rows,) = draw_floats(seed, (*sizes, ROWS, WIDTH))
    real = np.arange(ROWS) < np.sum(counts, axis=-1, keepdims=True)
    rows, counts = on_devices(rows, counts)
    expected = np.where(real.reshape(-1, 1), rows, 0)
    np.testing.assert_array_equal(run(rows, counts), expected)


def test_bfloat16_rows_keep_their_type(mesh):
  mesh(1, 4)
  counts = draw_groups('random', (1, 4), 0)
  rows = np.ones((1, 4, ROWS, WIDTH), jnp.bfloat16)
  apply = whole(lambda rows: 2 * rows)
  y = jax.jit(jax.shard_map(apply, in_specs=(SPLIT,) * 2, out_specs=SPLIT))(
    *on_devices(rows, counts)
  )
  assert y.dtype == jnp.bfloat16
  assert jnp.sum(y.astype(jnp.float32)) == 2 * WIDTH * np.sum(counts)
