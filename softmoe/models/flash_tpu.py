"""Attention by JAX's own flash kernel for TPUs, for any number of tokens.

Dao et al., 2022, https://arxiv.org/abs/2205.14135: logits are made a block at a
time and never written. Axes are those of `attention`.
"""

from jax import numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as kernel
from jaxtyping import Array, Bool, Float, Int

from softmoe.models import visibility

_LANES = 128
# The larger, the fewer times keys and values are read. Float32 logits of a
# block of 512 x 512 take 1 MiB of the 16 that a kernel has.
_BLOCKS = (512, 384, 256, 128)


def attend(
  query: Float[Array, 'b h q k'],
  key: Float[Array, 'b h n k'],
  value: Float[Array, 'b h n k'],
  mask: Bool[Array, '#b n'] | None,
  segments: Int[Array, '#b q'] | None,
  causal: bool,
) -> Float[Array, 'b h q k']:
  """Returns softmax attention; of a query that sees nothing, anything finite.

  Args:
    query: of each token that reads.
    key: of each token that is read.
    value: of each token that is read.
    mask: False where a token must not be read.
    segments: documents by number, any but the least of int32; for q = n.
    causal: no token reads a later one; for q = n.
  """
  shape, scale = query.shape, query.shape[-1] ** -0.5
  ids = _ids(shape[0], shape[2], key.shape[2], mask, segments)
  query, key, value = (_pad(v) for v in (query, key, value))
  y = kernel.flash_attention(
    query,
    key,
    value,
    segment_ids=ids,
    causal=causal,
    sm_scale=scale,
    block_sizes=_block_sizes(query.shape[2], key.shape[2]),
  )
  return y[:, :, : shape[2], : shape[3]]


def _ids(b, q, n, mask, segments) -> kernel.SegmentIds | None:
  """Returns who reads whom as the kernel takes it; None: all read all."""
  if mask is None and segments is None and n % _LANES == 0:
    return None
  rest = lambda ids: ((0, 0), (0, -ids.shape[1] % _LANES))
  fill = lambda ids: jnp.pad(ids, rest(ids), constant_values=visibility.HIDDEN)
  return kernel.SegmentIds(
    *map(fill, visibility.documents(b, q, n, mask, segments))
  )


def _pad(x: Float[Array, 'b h n k']) -> Float[Array, 'b h m j']:
  """Fills up the tokens, and a head wider than 128, to a multiple of 128."""
  n, k = x.shape[2:]
  wider = -k % _LANES if k > _LANES else 0
  return jnp.pad(x, ((0, 0), (0, 0), (0, -n % _LANES), (0, wider)))


def _block_sizes(q: int, n: int) -> kernel.BlockSizes:
  q, n = (next(b for b in _BLOCKS if m % b == 0) for m in (q, n))
  return kernel.BlockSizes(
    block_b=1,
    block_q=q,
    block_k_major=n,
    block_k=n,
    block_q_major_dkv=q,
    block_k_major_dkv=n,
    block_k_dkv=n,
    block_q_dkv=q,
    block_k_major_dq=n,
    block_k_dq=n,
    block_q_dq=q,
  )
