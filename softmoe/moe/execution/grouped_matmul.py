"""One matmul for each expert, over rows that are sorted by expert.

Axes: `n` rows, `d` width, `e` experts, `f` output width.
"""

import importlib
import importlib.util

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe.execution import chunks, grouped_kernel, weight_kernel


def grouped_matmul(
  x: Float[Array, 'n d'],
  w: Float[Array, 'e d f'],
  group_sizes: Int[Array, ' e'],
  *,
  implementation: str = 'auto',
) -> Float[Array, 'n f']:
  """Returns the product of every row with the matrix of its group.

  The first group_sizes[0] rows of x belong to w[0], the next group_sizes[1] to
  w[1], and so on. Rows past the last group give 0 and get no gradient. Sums
  are in float32.

  Args:
    x: rows.
    w: a matrix for each group.
    group_sizes: rows of each group, in all at most n.
    implementation: one of
      'reference': every matrix times every row, masked: slow, easy to trust.
      'chunks': a loop over groups and chunks of their rows, for CPU: time
        follows the rows that are in groups.
      'pallas': kernels that copy no matrix, for GPU: see `grouped_kernel`.
        Elsewhere they are interpreted, which is slow.
      'ragged_dot': `jax.lax.ragged_dot`, and `weight_kernel` for its gradient,
        for TPU; elsewhere the one multiplies every matrix with every row, and
        the other is interpreted.
      'tokamax': the kernels of that package, for GPU and TPU.
      'auto': 'chunks' on CPU; on GPU and TPU 'tokamax' where it is installed
        and no `jax.shard_map` with `check_vma` is around, else 'pallas' and
        'ragged_dot'.

  Raises:
    ValueError: `implementation` is unknown or not installed.
  """
  if implementation == 'auto':
    varies = bool(jax.typeof(x).manual_axis_type.varying)
    implementation = choose(sharding.platform(), varies)
  if implementation not in IMPLEMENTATIONS:
    allowed = ('auto', *IMPLEMENTATIONS)
    raise UserError('implementation', implementation, f'one of {allowed}')
  if implementation == 'tokamax' and not _has_tokamax():
    others = tuple(name for name in IMPLEMENTATIONS if name != 'tokamax')
    expected = f"'auto' or one of {others}: it is not installed"
    raise UserError('implementation', implementation, expected)
  group_sizes = group_sizes.astype(jnp.int32)
  y = IMPLEMENTATIONS[implementation](x, w, group_sizes)
  return y.astype(jnp.result_type(x, w))


def choose(platform: str, varies: bool) -> str:
  """Returns the implementation that 'auto' takes on a platform.

  Args:
    platform: see `sharding.platform`.
    varies: whether the type of the rows says that they vary over a mesh, as in
      a `jax.shard_map` that checks it: the kernels of tokamax say no such thing
      of their results.
  """
  if platform == 'cpu':
    return 'chunks'
  if _has_tokamax() and not varies:
    return 'tokamax'
  return 'ragged_dot' if platform == 'tpu' else 'pallas'


def _has_tokamax() -> bool:
  return importlib.util.find_spec('tokamax') is not None


def _reference(x, w, group_sizes):
  row = jnp.arange(len(x))[:, None]
  ends = jnp.cumsum(group_sizes)

  def add(y, group):
    w, start, end = group
    inside = (start <= row) & (row < end)
    return jnp.where(inside, _dot(x, w), y), None

  y = jnp.zeros_like(x, shape=(len(x), w.shape[-1]), dtype=jnp.float32)
  return jax.lax.scan(add, y, (w, ends - group_sizes, ends))[0]


def _dot(a: Float[Array, 'n d'], b: Float[Array, 'd f']) -> Float[Array, 'n f']:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _zeroed(
  y: Float[Array, 'n f'], group_sizes: Int[Array, ' e']
) -> Float[Array, 'n f']:
  """Returns rows with zeros past the last group.

  Kernels do not touch those rows: they hold whatever memory held.
  """
  inside = jnp.arange(len(y))[:, None] < jnp.sum(group_sizes)
  return jnp.where(inside, y, 0)


@jax.custom_vjp
def _ragged_dot(x, w, group_sizes):
  # TPUs sum in float32 and round once, whatever the type of the result: one
  # in float32 would only be written, and read again to be rounded.
  dtype = jnp.result_type(x, w)
  y = jax.lax.ragged_dot(x, w, group_sizes, preferred_element_type=dtype)
  return _zeroed(y, group_sizes)


def _ragged_dot_forward(x, w, group_sizes):
  return _ragged_dot(x, w, group_sizes), (x, w, group_sizes)


def _ragged_dot_backward(residuals, dy):
  x, w, group_sizes = residuals
  dy = dy.astype(x.dtype)
  dx = _ragged_dot(dy, jnp.swapaxes(w, 1, 2), group_sizes)
  dw = weight_kernel.weight_gradient(x, dy, group_sizes, w.dtype)
  return dx.astype(x.dtype), dw, None


_ragged_dot.defvjp(_ragged_dot_forward, _ragged_dot_backward)


def _pallas(x, w, group_sizes):
  # Kernels multiply one type with itself.
  dtype = jnp.result_type(x, w)
  return grouped_kernel.grouped_matmul(
    x.astype(dtype), w.astype(dtype), group_sizes
  )


def _tokamax(x, w, group_sizes):
  tokamax = importlib.import_module('tokamax')
  # Named, because left to itself it may end at the dense `jax.lax.ragged_dot`.
  on_tpu = sharding.platform() == 'tpu'
  kernels = ('mosaic',) if on_tpu else ('mosaic', 'triton')
  y = tokamax.ragged_dot(
    _zeroed(x, group_sizes),  # so that they get no gradient
    w,
    group_sizes,
    preferred_element_type=jnp.float32,
    implementation=kernels,
  )
  return _zeroed(y, group_sizes)


@jax.custom_vjp
def _chunks(x, w, group_sizes):
  def group(y, one):
    w, start, count = one

    def body(y, rows, real, run):
      inputs = x[rows]
      out = run(lambda n: chunks.pad(_dot(inputs[:n], w), chunks.CHUNK))
      return _put(y, rows, real, out)

    return chunks.each_chunk(body, y, start, count), None

  y = jnp.zeros_like(x, shape=(len(x), w.shape[-1]), dtype=jnp.float32)
  starts = jnp.cumsum(group_sizes) - group_sizes
  return jax.lax.scan(group, y, (w, starts, group_sizes))[0]


def _put(
  y: Float[Array, 'n f'],
  rows: Int[Array, ' chunk'],
  real: Bool[Array, ' chunk'],
  out: Float[Array, 'chunk f'],
) -> Float[Array, 'n f']:
  """Adds to rows that are still 0: repeats of a row must not replace it."""
  return y.at[rows].add(
    jnp.where(real[:, None], out, 0), mode='promise_in_bounds'
  )


def _chunks_forward(x, w, group_sizes):
  return _chunks(x, w, group_sizes), (x, w, group_sizes)


def _chunks_backward(residuals, dy):
  x, w, group_sizes = residuals

  def group(dx, one):
    w, start, count = one

    def body(state, rows, real, run):
      dx, dw = state
      inputs, outputs = x[rows], jnp.where(real[:, None], dy[rows], 0)
      outputs = outputs.astype(x.dtype)

      def step(n):
        a, b = inputs[:n], outputs[:n]
        return chunks.pad(_dot(b, w.T), chunks.CHUNK), _dot(a.T, b)

      dinputs, more = run(step)
      return _put(dx, rows, real, dinputs), dw + more

    zeros = jnp.zeros_like(w, dtype=jnp.float32)
    dx, dw = chunks.each_chunk(body, (dx, zeros), start, count)
    return dx, dw.astype(w.dtype)

  dx = jnp.zeros_like(x, dtype=jnp.float32)
  starts = jnp.cumsum(group_sizes) - group_sizes
  dx, dw = jax.lax.scan(group, dx, (w, starts, group_sizes))
  return dx.astype(x.dtype), dw, None


_chunks.defvjp(_chunks_forward, _chunks_backward)

IMPLEMENTATIONS = {
  'reference': _reference,
  'chunks': _chunks,
  'pallas': _pallas,
  'ragged_dot': _ragged_dot,
  'tokamax': _tokamax,
}
