"""What the tests of sparse routers share."""

import functools

import jax
import numpy as np
from jax import numpy as jnp

# Much code that runs for an instant: LLVM need not polish it.
QUICK_COMPILE = {'xla_backend_optimization_level': 0}


@jax.jit
def route(router, x, mask=None, key=None):
  return router(x, mask=mask, key=key)


def apply(assignment, x, up, down):
  """Returns the outputs and the kept pairs, as `Assignment` defines them."""
  order = jnp.argsort(-assignment.priority, axis=0)
  place = jnp.argsort(order, axis=0)
  kept = assignment.wanted()
  if assignment.capacity is not None:
    kept &= place < assignment.capacity
  outputs = jnp.einsum(
    'meh,ehd->med', jnp.tanh(jnp.einsum('md,edh->meh', x, up)), down
  )
  y = jnp.sum(jnp.where(kept, assignment.gates, 0)[:, :, None] * outputs, 1)
  return y, kept


@functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
def compute(router, x, mask, key, up, down, cotangent):
  """Returns gradients of the router, and what it makes of the tokens."""

  def loss(router, x):
    assignment, aux = router(x, mask=mask, key=key)
    y, kept = apply(assignment, x, up, down)
    total = jnp.sum(y * cotangent) + sum(aux.losses.values())
    return total, (y, kept, assignment.wanted(), aux.losses)

  grads, forward = jax.grad(loss, argnums=(0, 1), has_aux=True)(router, x)
  return (grads[0].kernel[...], grads[1]), forward


def check_gradients(actual, expected):
  for got, right in zip(actual, expected, strict=True):
    size = max(np.max(np.abs(right)), 1)
    np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5 * size)


def check_nothing_reaches_earlier_tokens(router):
  """Compares to the bit, with later tokens changed and with them padding."""
  x, other = jax.random.normal(jax.random.key(0), (2, 16, 8))
  before, _ = route(router, x, jnp.ones(16, bool))
  for first in (1, 5, 15):
    changed = jnp.concatenate([x[:first], other[first:]])
    for mask in (jnp.ones(16, bool), jnp.arange(16) < first):
      after, _ = route(router, changed, mask)
      np.testing.assert_array_equal(before.gates[:first], after.gates[:first])
      np.testing.assert_array_equal(
        before.priority[:first], after.priority[:first]
      )
    assert not np.any(after.wanted()[first:])


def check_nothing_but_padding_moves_nothing(router):
  """Returns its losses, after a look at what is wanted and steered."""
  x, mask = jnp.ones((4, 8)), jnp.zeros(4, bool)
  assignment, aux = route(router, x, mask)
  assert not np.any(assignment.wanted())
  assert aux.steer
  for error in aux.steer.values():
    assert np.all(error == 0)
  np.testing.assert_array_equal(
    router(x)[0].priority, route(router, x, ~mask)[0].priority
  )
  return aux.losses
