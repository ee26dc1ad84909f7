"""Rotary positions: a head's vector turned by where its token stands."""

from jax import numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
  x: Float[Array, 'b h n k'], positions: Int[Array, '#b n']
) -> Float[Array, 'b h n k']:
  """Returns queries or keys with rotary position embedding.

  Su et al., 2021, https://arxiv.org/abs/2104.09864. Entry i of a head is paired
  with entry i + k / 2, and the pair turned by position x 10,000^(-2i / k), so
  that a product of query and key depends on their distance alone.
  """
  half = x.shape[-1] // 2
  frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions.astype(jnp.float32)[..., None] * frequency[None, None]
  cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
  first, second = x[..., :half], x[..., half:]
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
