"""Tokens to slots and back, as einsums.

Axes: `*b` any leading axes, `m` tokens, `d` width, `e` experts, `s` slots of
one expert. Slots come expert-major, (e, *b, s, d): one matmul an expert.
"""

from jax import numpy as jnp
from jaxtyping import Array, Float


def dispatch(
  x: Float[Array, '*b m d'], weights: Float[Array, '*b m e s']
) -> Float[Array, 'e *b s d']:
  """Returns slots, each the mean of tokens under its dispatch weights."""
  return jnp.einsum('...md,...mes->e...sd', x, weights.astype(x.dtype))


def combine(
  y: Float[Array, 'e *b s d'], weights: Float[Array, '*b m e s']
) -> Float[Array, '*b m d']:
  """Returns tokens, each the mean of slot outputs under its combine weights."""
  return jnp.einsum('e...sd,...mes->...md', y, weights.astype(y.dtype))
