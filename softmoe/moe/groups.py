"""Groups: the tokens that are routed together.

Axes: `b` examples, `m` tokens of an example, `g` groups, `t` tokens of a group.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Shaped


def split(
  x: Shaped[jax.Array, 'b m *rest'], size: int, across: bool
) -> Shaped[jax.Array, 'g t *rest']:
  """Returns the tokens of `size` examples as one group.

  Args:
    x: anything that tokens have, from vectors to flags.
    size: number of neighbouring examples that share a group.
    across: a group holds the tokens at one position of its examples, instead
      of all their tokens.
  """
  b, m, *rest = x.shape
  if across:
    x = jnp.swapaxes(x.reshape(b // size, size, m, *rest), 1, 2)
    return x.reshape(b // size * m, size, *rest)
  return x.reshape(b // size, size * m, *rest)


def join(
  x: Shaped[jax.Array, 'g t *rest'], shape: tuple[int, int], across: bool
) -> Shaped[jax.Array, 'b m *rest']:
  """Inverts `split`, given the b and m of its input."""
  (b, m), rest = shape, x.shape[2:]
  if across:
    x = jnp.swapaxes(x.reshape(-1, m, *x.shape[1:]), 1, 2)
  return x.reshape(b, m, *rest)
