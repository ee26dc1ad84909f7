"""Tokens that a device collects from others: what of them is kept."""

import jax
import numpy as np
from jax import numpy as jnp

from softmoe import recompute
from softmoe.moe.execution import pairs

P = jax.P
TOKENS, WIDTH, EXPERTS, DEVICES = 16, 3, 4, 4


def test_collected_tokens_are_not_kept(mesh):
  mesh(1, DEVICES)
  sine = recompute.from_arguments(jnp.sin)  # keeps the tokens it is given

  def apply(experts, x, gates, wanted):
    return sine(x), None

  def local(x, gates, wanted):
    count = lambda wanted: jnp.sum(wanted, dtype=jnp.float32)
    return pairs.collect(
      apply, count, (), x, gates, wanted, 'expert', lambda v, axis: v
    ).y

  x = jax.random.normal(jax.random.key(0), (TOKENS, WIDTH))
  gates, wanted = jnp.ones((TOKENS, EXPERTS)), jnp.ones((TOKENS, EXPERTS), bool)
  split = lambda v: jax.device_put(v, P('expert'))
  run = jax.shard_map(local, in_specs=P('expert'), out_specs=P('expert'))
  y, pull = jax.vjp(lambda x: run(x, split(gates), split(wanted)), split(x))
  np.testing.assert_allclose(y, DEVICES * np.sin(x), rtol=1e-5)
  np.testing.assert_allclose(
    pull(jnp.ones_like(y))[0], DEVICES * np.cos(x), rtol=1e-5
  )
  kept = [v for v in jax.tree.leaves(pull) if v.shape[-1:] == (WIDTH,)]
  rows = [v.size // WIDTH for v in kept]
  assert rows and max(rows) == TOKENS  # and not of all on each device
