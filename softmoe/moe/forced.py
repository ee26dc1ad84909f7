"""Routing against the router's will: the best and the worst case, for timings.

Axes: `g` groups, `m` tokens of a group, `e` experts.
"""

import dataclasses
import math

from jax import numpy as jnp
from jaxtyping import Array, Bool

from softmoe.errors import UserError
from softmoe.moe import routing

# 'even': all experts are wanted equally often; 'one': all tokens want the same.
KINDS = ('', 'even', 'one')


def force(
  routed: routing.Slots | routing.Factors | routing.Assignment,
  kind: str,
  mask: Bool[Array, 'g m'] | None,
) -> routing.Assignment:
  """Returns a routing to as many experts a token, with the router's gates.

  Args:
    routed: what the router says.
    kind: 'even' or 'one'.
    mask: False where a token is padding, which wants none.

  Raises:
    UserError: every token is in every slot, and nothing can be forced.
  """
  if not isinstance(routed, routing.Assignment):
    raise UserError('forced_routing', kind, "'', since all slots are dense")
  g, m, e = routed.priority.shape
  choices = math.ceil(routed.mean_choices())
  token = jnp.arange(g * m).reshape(g, m, 1) if kind == 'even' else 0
  # The experts after the first that a token wants, as on a ring.
  place = (jnp.arange(e)[None, None] - choices * token) % e
  wanted = jnp.broadcast_to(place < choices, (g, m, e))
  if mask is not None:
    wanted &= mask[..., None]
  return dataclasses.replace(routed, priority=jnp.where(wanted, 0.0, -jnp.inf))
