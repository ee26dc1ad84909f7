"""Dropless experts at work on all the tokens that want them.

Axes: `g` groups, `m` tokens of a group, `n` tokens of all groups, `d` width,
`e` experts.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from softmoe import sharding
from softmoe.moe import experts as experts_lib
from softmoe.moe import routing
from softmoe.moe.execution import dropless, exchange

# A round has room for so many times the rows of an even load.
ROOM = 1.25
# Experts of a token, of a router that has neither bound nor expectation.
EXPECTED = 2.0

Mine = Callable[..., Array]
# Of the experts' module, tokens, gates and who wants whom.
Apply = Callable[[Any, Array, Array, Array], Array]
Ran = tuple[Float[Array, 'n d_out'], Float[Array, '']]


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
    implementation = choose(sharding.platform(), experts)
  arguments = _flat(x), _flat(routed.gates), _flat(routed.wanted())
  if implementation == 'fused':
    run, count = _fused, dropless.executed
  else:
    run, count = functools.partial(_grouped, routed, len(arguments[0])), _count
  if implementation == 'grouped' and axis and routed.choices is not None:
    y, executed = send(routed, experts.stacked, *arguments, axis)
  else:
    y, executed = collect(run, count, experts.stacked, *arguments, axis, mine)
  return y.reshape(*x.shape[:2], -1), executed


def choose(platform: str, experts: experts_lib.Experts) -> str:
  """Returns the implementation of dropless experts that 'auto' takes.

  A grouped matmul is for accelerators, and for experts that can
  (`Mlp.grouped`).
  """
  can = hasattr(experts.stacked, 'grouped')
  return 'grouped' if can and platform != 'cpu' else 'fused'


@jax.named_scope('experts')
def collect(
  apply: Apply,
  count: Callable[[Array], Array],
  experts: Any,
  x: Float[Array, 'n d'],
  gates: Float[Array, 'n e'],
  wanted: Bool[Array, 'n e'],
  axis: str | None,
  mine: Mine,
) -> Ran:
  """Runs the experts of this device on all tokens that want them.

  Over a mesh axis, every device collects the tokens of the axis, and the
  partial sums are added where the tokens live.
  """
  if axis is None:
    executed = count(wanted)
    return apply(experts, x, mine(gates, 1), mine(wanted, 1)), executed
  x = jax.lax.all_gather(x, axis, tiled=True)
  gates = jax.lax.all_to_all(gates, axis, 1, 0, tiled=True)
  wanted = jax.lax.all_to_all(wanted, axis, 1, 0, tiled=True)
  y = apply(experts, x, gates, wanted)
  return jax.lax.psum_scatter(y, axis, tiled=True), count(wanted)


@jax.named_scope('experts')
def send(
  routed: routing.Assignment,
  experts: Any,
  x: Float[Array, 'n d'],
  gates: Float[Array, 'n e'],
  wanted: Bool[Array, 'n e'],
  axis: str,
) -> Ran:
  """Sends rows to their experts and back, as many as there are.

  A device has room for its share of all rows, and some.
  """
  num_experts, devices = wanted.shape[1], jax.lax.axis_size(axis)
  rows = len(x) * _choices(routed)
  most = devices * len(x) * min(_choices(routed), num_experts // devices)
  room = min(math.ceil(ROOM * rows), most)
  grouped = exchange.at_owners(_call, axis, room, most)
  y = dropless.apply_grouped(grouped, experts, x, gates, wanted, rows, rows)
  return y, _count(wanted)


def _call(experts, rows, group_sizes):
  return experts.grouped(rows, group_sizes)


def _fused(experts, x, gates, wanted):
  gated = hasattr(experts, 'gated')
  plain = lambda expert, x: expert(x)
  fn = (lambda expert, *rows: expert.gated(*rows)) if gated else plain
  return dropless.apply(fn, experts, x, gates, wanted, gated=gated)


def _grouped(routed, num_tokens, experts, x, gates, wanted):
  """Runs all experts at once; `num_tokens` are of this device alone."""
  if routed.choices is not None:
    rows = most = num_tokens * _choices(routed)
  else:
    expected = EXPECTED if routed.expected is None else routed.expected
    rows, most = math.ceil(ROOM * expected * num_tokens), None
  return dropless.apply_grouped(_call, experts, x, gates, wanted, rows, most)


def _choices(routed: routing.Assignment) -> int:
  num_experts = routed.gates.shape[-1]
  return min(routed.choices or num_experts, num_experts)


def _count(wanted: Bool[Array, 'n e']) -> Float[Array, '']:
  return jnp.sum(wanted, dtype=jnp.float32)


def _flat(x: Shaped[Array, 'g m k']) -> Shaped[Array, 'n k']:
  return x.reshape(-1, x.shape[-1])
