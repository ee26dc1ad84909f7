"""What is computed again: the same gradients, of what is kept."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe import recompute

SHAPE = 6, 4


def wave(tree, x, token):
  """Returns something of which autodiff keeps several arrays."""
  y = jnp.tanh(jnp.sin(tree['scale'] * x) ** 2) * jnp.exp(-(x**2))
  return y[token], {'sum': jnp.sum(y)}


def draw():
  x = jax.random.normal(jax.random.key(0), SHAPE)
  return {'scale': jnp.float32(1.5)}, x, jnp.array([5, 0, 0, 3])


def pull(fn, dy):
  tree, x, token = draw()
  return jax.vjp(lambda tree, x: fn(tree, x, token), tree, x)[1](dy)


def test_outputs_and_gradients_are_those_of_the_function():
  found = recompute.from_arguments(wave)(*draw())
  jax.tree.map(np.testing.assert_array_equal, found, wave(*draw()))
  keys = jax.random.split(jax.random.key(1))
  dy = jax.random.normal(keys[0], (4, 4)), {'sum': jax.random.normal(keys[1])}
  gradients = pull(recompute.from_arguments(wave), dy)
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
  jax.tree.map(same, gradients, pull(wave, dy))


@pytest.mark.parametrize('within', [False, True])
def test_arguments_are_kept_and_nothing_else(within):
  tree, x, token = draw()
  call = lambda tree, x: recompute.from_arguments(wave)(tree, x, token)
  if within:  # as the weights of `fsdp` are gathered again
    policy = jax.checkpoint_policies.everything_saveable
    call = jax.checkpoint(call, policy=policy)
  kept = jax.tree.leaves(jax.vjp(call, tree, x)[1])
  assert [v.shape for v in kept if v.size >= x.size] == [SHAPE]
