"""Softmax attention by plain batched matmuls.

Axes: `b` examples, `h` heads, `q` queries, `n` tokens that are read, `k` width
of a head. Heads come before tokens: this is what a CPU is fast at, and what
`jax.nn.dot_product_attention` does not give.

The backward pass is written out: it keeps the weights in the type that they are
used in, where autodiff keeps the softmax's float32, and takes the inner product
of softmax's gradient over a head's width in place of the tokens, as in Dao et
al. 2022, https://arxiv.org/abs/2205.14135, appendix B.2.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe.moe import dot

_FLOAT32 = {'preferred_element_type': jnp.float32}


@jax.custom_vjp
def attend(
  query: Float[Array, 'b h q k'],
  key: Float[Array, 'b h n k'],
  value: Float[Array, 'b h n k'],
  visible: Bool[Array, '#b 1 #q n'] | None,
) -> Float[Array, 'b h q k']:
  """Returns softmax attention, scaled by the root of the head's width.

  Args:
    query: of each token that reads.
    key: of each token that is read.
    value: of each token that is read.
    visible: which tokens each may read; one that reads none gets the mean of
      all, and must be given no gradient.
  """
  return _forward(query, key, value, visible)[0]


def _forward(query, key, value, visible):
  weights = _weights(query, key, visible).astype(value.dtype)
  y = jnp.einsum('bhqn,bhnk->bhqk', weights, value)
  return y, (query, key, value, weights, y)


def _weights(query, key, visible):
  logits = jnp.einsum('bhqk,bhnk->bhqn', query, key, **_FLOAT32)
  logits = logits * query.shape[-1] ** -0.5
  if visible is not None:
    logits = jnp.where(visible, logits, jnp.finfo(logits.dtype).min)
  return jax.nn.softmax(logits)


def _backward(kept, dy):
  query, key, value, weights, y = kept
  inner = jnp.einsum('bhqk,bhqk->bhq', dy, y, **_FLOAT32)
  dweights = jnp.einsum('bhqk,bhnk->bhqn', dy, value, **_FLOAT32)
  dlogits = weights * (dweights - inner[..., None]) * query.shape[-1] ** -0.5
  dlogits = dlogits.astype(query.dtype)
  dquery = jnp.einsum('bhqn,bhnk->bhqk', dlogits, key)
  dkey = jnp.einsum('bhnq,bhqk->bhnk', dot.transposed(dlogits), query)
  dvalue = jnp.einsum('bhnq,bhqk->bhnk', dot.transposed(weights), dy)
  return dquery, dkey, dvalue, None


attend.defvjp(_forward, _backward)
