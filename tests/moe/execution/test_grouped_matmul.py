"""Every implementation against a loop over rows in numpy."""

import functools
import sys
import types

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe.moe.execution import grouped_matmul as gm
from softmoe.moe.execution import weight_kernel

P = jax.P
NAMES = ('reference', 'chunks', 'pallas', 'ragged_dot')
SHAPES = ((1, 3, 1, 2), (7, 4, 3, 5), (300, 4, 5, 3), (261, 5, 9, 4))


def draw(seed, n, d, e, f):
  rng = np.random.default_rng(seed)
  normal = lambda *s: rng.normal(size=s).astype(np.float32)
  kind = seed % 4
  share = rng.dirichlet(np.full(e, 0.3 if kind == 0 else 3))
  sizes = rng.multinomial(n if kind != 1 else n // 2, share)
  if kind == 2:  # everything to one group, or nothing at all
    sizes = np.zeros(e, int)
    sizes[rng.integers(e)] = n * (seed % 8 == 2)
  return normal(n, d), normal(e, d, f), sizes.astype(np.int32), normal(n, f)


def plain(x, w, sizes, dy):
  """Returns y, dx and dw of float64 loops."""
  x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
  y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
  owners = np.repeat(np.arange(len(sizes)), sizes)
  for row, group in enumerate(owners):
    y[row] = x[row] @ w[group]
    dx[row] = dy[row] @ w[group].T
    dw[group] += np.outer(x[row], dy[row])
  return y, dx, dw


@functools.cache
def value_and_gradient(name):
  @jax.jit
  def run(x, w, sizes, dy):
    f = lambda x, w: gm.grouped_matmul(x, w, sizes, implementation=name)
    y, pull = jax.vjp(f, x, w)
    return y, *pull(dy)

  return run


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', NAMES)
def test_equals_a_plain_loop(name, shape):
  for seed in range(24):
    case = draw(seed, *shape)
    actual = value_and_gradient(name)(*case)
    for a, b in zip(actual, plain(*case), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-4 if shape[0] > 99 else 1e-5)


@pytest.mark.parametrize('name', ('pallas', 'ragged_dot'))
def test_kernels_of_several_tiles(name, monkeypatch):
  monkeypatch.setattr(weight_kernel, 'ROWS', 64)
  monkeypatch.setattr(weight_kernel, 'TILE', 128)
  for seed in (0, 1, 2, 6):
    case = draw(seed, 300, 150, 3, 200)
    actual = value_and_gradient(name)(*case)
    for a, b in zip(actual, plain(*case), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-6 * np.max(np.abs(b)))


@pytest.mark.parametrize('name', NAMES)
def test_what_is_past_the_last_group_is_not_read(name):
  x, w, sizes, dy = draw(1, 300, 4, 5, 3)
  used = sizes.sum()
  assert 0 < used < len(x)
  expected = value_and_gradient(name)(x, w, sizes, dy)
  x[used:] = np.nan
  dy[used:] = np.nan
  y, dx, dw = value_and_gradient(name)(x, w, sizes, dy)
  assert not y[used:].any() and not dx[used:].any()
  if name != 'reference':
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(dw, expected[2])


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_sums_in_float32(name):
  x, w, sizes, _ = draw(3, 64, 400, 3, 2)
  x, w = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
  sizes = jnp.asarray(sizes)
  ones = jnp.ones((len(x), w.shape[2]), x.dtype)
  y, dx, dw = value_and_gradient(name)(x, w, sizes, ones)
  assert y.dtype == dx.dtype == dw.dtype == jnp.bfloat16
  x, w = np.asarray(x, np.float32), np.asarray(w, np.float32)
  exact = plain(x, w, sizes, np.float32(ones))
  for a, b in zip((y, dx, dw), exact, strict=True):
    # Half a unit in the last of 8 bits, and no more: one rounding at the end.
    np.testing.assert_allclose(a.astype(np.float32), b, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize('name', NAMES)
def test_gradients_have_the_precision_of_what_they_are_of(name):
  x, w, sizes, _ = draw(3, 64, 5, 3, 2)
  x = jnp.asarray(x, jnp.bfloat16)
  ones = np.ones((len(x), w.shape[2]), np.float32)
  dw = value_and_gradient(name)(x, w, jnp.asarray(sizes), ones)[2]
  assert dw.dtype == jnp.float32
  exact = plain(np.asarray(x, np.float32), w, sizes, ones)[2]
  np.testing.assert_allclose(dw, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_vmap_over_layers_scan_and_remat(name):
  cases = [draw(s, 40, 4, 3, 4) for s in (0, 1, 2, 3)]
  x, w, sizes, dy = (jnp.stack(a) for a in zip(*cases, strict=True))
  multiply = functools.partial(gm.grouped_matmul, implementation=name)
  several = jax.vmap(value_and_gradient(name))(x, w, sizes, dy)
  for i, case in enumerate(cases):
    for a, b in zip(several, plain(*case), strict=True):
      np.testing.assert_allclose(a[i], b, atol=1e-4)

  def stack(w, x, checkpoint):
    layer = lambda x, one: (multiply(x, one[0], one[1]), None)
    layer = jax.checkpoint(layer) if checkpoint else layer
    return jnp.sum(jax.lax.scan(layer, x, (w, sizes))[0] ** 2)

  expected = np.asarray(cases[0][0], np.float64)
  for _, w_one, sizes_one, _ in cases:
    expected = plain(expected, w_one, sizes_one, expected)[0]
  run = jax.jit(jax.value_and_grad(stack), static_argnums=2)
  loss, once = run(w, x[0], False)
  np.testing.assert_allclose(loss, np.sum(expected**2), rtol=1e-4)
  np.testing.assert_allclose(run(w, x[0], True)[1], once, rtol=1e-5, atol=1e-4)


def matmuls(f, *args):
  """Returns the shapes that go into every dot of the lowered function."""
  lines = jax.jit(f).lower(*args).as_text().splitlines()
  return [line for line in lines if 'dot_general' in line]


def test_auto_on_cpu_multiplies_no_row_with_every_matrix():
  x, w, sizes, dy = draw(0, 300, 4, 5, 3)
  auto = lambda x, w, dy: value_and_gradient('auto')(x, w, sizes, dy)
  dots = matmuls(auto, x, w, dy)
  assert dots
  assert not any('tensor<300' in d or 'x300x' in d for d in dots)
  # The dense form is seen by the same reading.
  dense = lambda x, w, dy: value_and_gradient('reference')(x, w, sizes, dy)
  assert any('tensor<300' in d for d in matmuls(dense, x, w, dy))
  text = jax.jit(auto).lower(x, w, dy).as_text()
  assert 'ragged' not in text


@pytest.mark.parametrize(
  'installed, in_shard_map, choices',
  [
    (False, False, ['chunks', 'pallas', 'ragged_dot']),
    (True, False, ['chunks', 'tokamax', 'tokamax']),
    (True, True, ['chunks', 'pallas', 'ragged_dot']),
  ],
)
def test_choice_by_platform(monkeypatch, installed, in_shard_map, choices):
  monkeypatch.setattr(gm, '_has_tokamax', lambda: installed)
  platforms = ('cpu', 'gpu', 'tpu')
  assert [gm.choose(p, in_shard_map) for p in platforms] == choices


def test_wrong_names(monkeypatch):
  monkeypatch.setattr(gm, '_has_tokamax', lambda: False)
  x, w, sizes, _ = map(jnp.asarray, draw(0, 7, 4, 3, 5))
  with pytest.raises(ValueError, match="implementation: got 'dense'; one of"):
    gm.grouped_matmul(x, w, sizes, implementation='dense')
  with pytest.raises(ValueError, match="got 'tokamax'; .* not installed"):
    gm.grouped_matmul(x, w, sizes, implementation='tokamax')


def test_tokamax_gets_kernels_by_name_and_its_tail_is_masked(monkeypatch):
  def ragged_dot(x, w, sizes, *, preferred_element_type, implementation):
    assert 'xla' not in implementation  # that one is dense
    y = gm.grouped_matmul(x, w, sizes, implementation='reference')
    inside = jnp.arange(len(x))[:, None] < jnp.sum(sizes)
    return jnp.where(inside, y, jnp.nan).astype(preferred_element_type)

  fake = types.SimpleNamespace(ragged_dot=ragged_dot)
  monkeypatch.setitem(sys.modules, 'tokamax', fake)
  monkeypatch.setattr(gm, '_has_tokamax', lambda: True)
  case = draw(1, 40, 4, 3, 5)
  actual = value_and_gradient('tokamax')(*case)
  for a, b in zip(actual, plain(*case), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_kernels_in_shard_map(mesh):
  """Every device has rows of its own, and two share each group's matrix."""
  mesh(2, 2)
  cases = [draw(seed, 37, 4, 3, 5) for seed in (0, 1, 3, 4)]
  x, _, sizes, dy = (np.concatenate(a) for a in zip(*cases, strict=True))
  w = np.concatenate([cases[0][1], cases[1][1]])  # of the axis `expert`
  rows = P(('data', 'expert'))

  def local(x, w, sizes, dy):
    f = lambda x, w: gm.grouped_matmul(x, w, sizes, implementation='pallas')
    y, pull = jax.vjp(f, x, jax.lax.pcast(w, 'data', to='varying'))
    dx, dw = pull(dy)
    return y, dx, jax.lax.psum(dw, 'data')

  run = jax.shard_map(
    local,
    in_specs=(rows, P('expert'), rows, rows),
    out_specs=(rows, rows, P('expert')),
    check_vma=False,  # the interpreter of kernels knows no varying axes
  )
  put = lambda a: jax.device_put(a, rows)
  actual = jax.jit(run)(
    put(x), jax.device_put(w, P('expert')), put(sizes), put(dy)
  )
  parts = [
    plain(a, cases[i % 2][1], s, b) for i, (a, _, s, b) in enumerate(cases)
  ]
  y, dx, dw = zip(*parts, strict=True)
  dw = dw[0] + dw[2], dw[1] + dw[3]
  for a, b in zip(actual, (y, dx, dw), strict=True):
    np.testing.assert_allclose(a, np.concatenate(b), atol=1e-5)
