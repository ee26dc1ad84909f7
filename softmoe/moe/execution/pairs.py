"""Dropless experts at work on all the tokens that want them.

Axes: `g` groups, `m` tokens of a group, `n` tokens of all groups, `d` width,
`e` experts.
"""

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Shaped

from softmoe import sharding
from softmoe.moe import experts as experts_lib
from softmoe.moe import routing
from softmoe.moe.execution import dropless, exchange

Mine = Callable[..., Array]


def run(
  routed: routing.Assignment,
  x: Float[Array, 'g m d'],
  experts: experts_lib.Experts,
  axis: str | None,
  implementation: str,
  mine: Mine,
) -> tuple[Float[Array, 'g m d_out'], Float[Array, '']]:
  """Returns outputs combined for each token, and how many rows experts see.

  Args:
    routed: who wants whom.
    x: tokens.
    experts: those of this device.
    axis: mesh axis that tokens and experts are split over; None: neither is.
    implementation: 'fused', 'grouped' or 'auto'.
    mine: takes, of an array of all experts along an axis, those that work for
      the tokens here where `axis` is None.
  """
  if implementation == 'auto':
    implementation = choose(sharding.platform(), routed, experts)
  run = run_grouped if implementation == 'grouped' else run_fused
  y, executed = run(routed, _flat(x), experts, axis, mine)
  return y.reshape(*x.shape[:2], -1), executed


def choose(
  platform: str, routed: routing.Assignment, experts: experts_lib.Experts
) -> str:
  """Returns the implementation of dropless experts that 'auto' takes.

  A grouped matmul wants a buffer for the most rows there may be: it is for
  accelerators, for routers that bound the experts of a token, and for experts
  that can (`Mlp.grouped`).
  """
  bounded = routed.choices is not None and hasattr(experts.stacked, 'grouped')
  return 'grouped' if bounded and platform != 'cpu' else 'fused'


@jax.named_scope('experts')
def run_fused(
  routed: routing.Assignment,
  x: Float[Array, 'n d'],
  experts: experts_lib.Experts,
  axis: str | None,
  mine: Mine,
) -> tuple[Float[Array, 'n d_out'], Float[Array, '']]:
  """Runs expert after expert on chunks of the tokens that want it.

  Over a mesh axis, every device collects the tokens of the axis, works for its
  own experts, and the partial sums are added where the tokens live.
  """
  gates, wanted = _flat(routed.gates), _flat(routed.wanted())
  if axis is None:
    executed = dropless.executed(wanted)
    gates, wanted = mine(gates, 1), mine(wanted, 1)
  else:
    x = jax.lax.all_gather(x, axis, tiled=True)
    gates = jax.lax.all_to_all(gates, axis, 1, 0, tiled=True)
    wanted = jax.lax.all_to_all(wanted, axis, 1, 0, tiled=True)
    executed = dropless.executed(wanted)
  gated = hasattr(experts.stacked, 'gated')
  y = dropless.apply(
    (lambda expert, *rows: expert.gated(*rows))
    if gated
    else (lambda expert, x: expert(x)),
    experts.stacked,
    x,
    gates,
    wanted,
    gated=gated,
  )
  if axis is not None:
    y = jax.lax.psum_scatter(y, axis, tiled=True)
  return y, executed


@jax.named_scope('experts')
def run_grouped(
  routed: routing.Assignment,
  x: Float[Array, 'n d'],
  experts: experts_lib.Experts,
  axis: str | None,
  mine: Mine,
) -> tuple[Float[Array, 'n d_out'], Float[Array, '']]:
  """Runs all experts by grouped matmuls on rows that are sorted by expert.

  Over a mesh axis, the rows travel to their experts and back, as many as there
  are.
  """
  gates, wanted = _flat(routed.gates), _flat(routed.wanted())
  executed = jnp.sum(wanted, dtype=jnp.float32)
  gates, wanted = mine(gates, 1), mine(wanted, 1)
  choices = min(routed.choices or wanted.shape[1], wanted.shape[1])
  grouped = experts.stacked.grouped
  if axis is not None:
    devices = jax.lax.axis_size(axis)
    most = min(choices, wanted.shape[1] // devices)
    grouped = exchange.at_owners(grouped, axis, devices * len(x) * most)
  y = dropless.apply_grouped(grouped, x, gates, wanted, len(x) * choices)
  return y, executed


def _flat(x: Shaped[Array, 'g m k']) -> Shaped[Array, 'n k']:
  return x.reshape(-1, x.shape[-1])
