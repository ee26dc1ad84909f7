"""Groups against their definition, position by position."""

import numpy as np
import pytest
from jax import numpy as jnp

from softmoe.moe import groups


@pytest.mark.parametrize('rest', [(), (3,), (2, 3)])
@pytest.mark.parametrize(('b', 'm', 'size'), [(4, 3, 2), (6, 1, 3), (2, 5, 1)])
def test_split_takes_neighbouring_examples(b, m, size, rest):
  x = np.arange(b * m * int(np.prod(rest))).reshape(b, m, *rest)
  along = np.asarray(groups.split(jnp.asarray(x), size, False))
  across = np.asarray(groups.split(jnp.asarray(x), size, True))
  assert along.shape == (b // size, size * m, *rest)
  assert across.shape == (b // size * m, size, *rest)
  for i in range(b):
    for t in range(m):
      place = i // size, i % size * m + t
      np.testing.assert_array_equal(along[place], x[i, t])
      place = i // size * m + t, i % size
      np.testing.assert_array_equal(across[place], x[i, t])


@pytest.mark.parametrize('across', [False, True])
@pytest.mark.parametrize(('b', 'm', 'size'), [(4, 3, 2), (6, 1, 3), (2, 5, 1)])
def test_join_inverts_split(b, m, size, across):
  x = jnp.arange(b * m * 3.0).reshape(b, m, 3)
  y = groups.join(groups.split(x, size, across), (b, m), across)
  np.testing.assert_array_equal(y, x)
