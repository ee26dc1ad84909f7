"""Dropless experts at work on all the tokens that want them.

Axes: `g` groups, `m` tokens of a group, `n` tokens of all groups, `d` width,
`e` experts.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from softmoe import sharding
from softmoe.moe import experts as experts_lib
from softmoe.moe import routing
from softmoe.moe.execution import dropless, exchange, rounds

Mine = Callable[..., Array]
# From the experts' module, tokens, gates and who wants whom to outputs, and to
# the rounds of the buffer; None: there is none.
Apply = Callable[[Any, Array, Array, Array], tuple[Array, Array | None]]


class Ran(NamedTuple):
  """What experts gave back.

  Attributes:
    y: of each token, combined.
    executed: rows that experts saw.
    rounds: of the buffer of this device; None: there is none.
  """

  y: Float[Array, '*n d_out']
  executed: Float[Array, '']
  rounds: Int[Array, ''] | None


def run(
  routed: routing.Assignment,
  x: Float[Array, 'g m d'],
  experts: experts_lib.Experts,
  axis: str | None,
  implementation: str,
  buffer_factor: float,
  mine: Mine,
) -> Ran:
  """Returns outputs combined for each token, and what that took.

  Args:
    routed: who wants whom.
    x: tokens.
    experts: those of this device.
    axis: mesh axis that tokens and experts are split over; None: neither is.
    implementation: 'fused', 'grouped' or 'auto'.
    buffer_factor: a round has room for so many times the rows of an even load.
    mine: takes, of an array of all experts along an axis, those that work for
      the tokens here where `axis` is None.
  """
  if implementation == 'auto':
    implementation = choose(sharding.platform(), experts)
  arguments = _flat(x), _flat(routed.gates), _flat(routed.wanted())
  if implementation == 'fused':
    ran = collect(
      _fused, dropless.executed, experts.stacked, *arguments, axis, mine
    )
  elif axis and routed.choices is not None:
    ran = send(routed, buffer_factor, experts.stacked, *arguments, axis)
  else:
    load = _load(routed, len(arguments[0]) // _parts(len(arguments[0]), axis))
    apply = functools.partial(_grouped, *load, buffer_factor)
    ran = collect(apply, _count, experts.stacked, *arguments, axis, mine)
  return ran._replace(y=ran.y.reshape(*x.shape[:2], -1))


def choose(platform: str, experts: experts_lib.Experts) -> str:
  """Returns the implementation of dropless experts that 'auto' takes.

  A grouped matmul is for accelerators, and for experts that can
  (`Mlp.grouped`).
  """
  can = experts_lib.has_way(experts.stacked, 'grouped')
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

  Over a mesh axis, every device collects the tokens of the axis, a part of all
  at a time, and the partial sums are added where the tokens live. The backward
  pass collects them again, and keeps its own alone; what is computed again for
  it, as by `remat`, does too.
  """
  if axis is None:
    y, num = apply(experts, x, mine(gates, 1), mine(wanted, 1))
    return Ran(y, count(wanted), num)

  def work(x, gates, wanted):
    x = jax.lax.all_gather(x, axis, tiled=True)
    y, num = apply(experts, x, gates, wanted)
    return jax.lax.psum_scatter(y, axis, tiled=True), num

  policy = lambda primitive, *_, **__: primitive is not jax.lax.all_gather_p
  work = jax.checkpoint(work, prevent_cse=False, policy=policy)
  parts = _parts(len(x), axis)
  cut = lambda v: v.reshape(parts, -1, v.shape[-1])
  travel = lambda v: exchange.arrived(
    jax.lax.all_to_all(v, axis, 2, 1, tiled=True)
  )
  columns = cut(x), travel(cut(gates)), travel(cut(wanted))
  y, num = jax.lax.map(lambda part: work(*part), columns)
  executed = jnp.sum(jax.vmap(count)(columns[-1]))
  num = None if num is None else jnp.max(num)
  return Ran(exchange.arrived(y.reshape(len(x), -1)), executed, num)


def _parts(num_tokens: int, axis: str | None) -> int:
  """Returns in how many parts tokens are collected.

  Where they divide, a device then holds as many as it has of its own. Of two
  devices all at once are no more than twice that.
  """
  size = 1 if axis is None else jax.lax.axis_size(axis)
  return math.gcd(num_tokens, size) if size > 2 else 1


@jax.named_scope('experts')
def send(
  routed: routing.Assignment,
  buffer_factor: float,
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
  choices = int(routed.mean_choices())
  rows = len(x) * choices
  most = devices * len(x) * min(choices, num_experts // devices)
  room = rounds.room(buffer_factor, rows, most)

  def run(start, num_rows, arguments):
    experts, sizes, x, gates, pairs = arguments
    at = lambda rows, _: exchange.at_owners(
      experts.grouped, rows, sizes, start, num_rows, axis
    )
    first = jnp.zeros_like(start)
    return dropless.sum_pairs(at, x, gates, pairs, first, rows)

  pairs = dropless.sort(wanted)
  sizes = exchange.gather_sizes(pairs.count, axis)
  arguments = experts, sizes, x, gates.astype(jnp.float32), pairs
  fullest = exchange.fullest(sizes)
  y = rounds.total(run, room, fullest, arguments, dropless.cast)
  y = exchange.arrived(y.astype(x.dtype))
  return Ran(y, _count(wanted), room.needed(fullest))


def _fused(experts, x, gates, wanted):
  gated = experts_lib.has_way(experts, 'gated')
  plain = lambda expert, x: expert(x)
  fn = (lambda expert, *rows: expert.gated(*rows)) if gated else plain
  y = dropless.apply(fn, experts, x, gates, wanted, gated=gated)
  return y, None


def _grouped(even, most, buffer_factor, experts, x, gates, wanted):
  """Runs all experts at once, with room for so many times an even load."""
  room = rounds.room(buffer_factor, even, min(most, wanted.size))
  call = lambda experts, *rows: experts.grouped(*rows)
  y = dropless.apply_grouped(call, experts, x, gates, wanted, room)
  return y, room.needed(jnp.sum(wanted, dtype=jnp.int32))


def _load(routed: routing.Assignment, num_tokens: int) -> tuple[int, int]:
  """Returns the pairs that an even load has, and the most that there may be.

  Over a mesh as many rows come from all devices, evenly, as one sends.
  """
  even = math.ceil(routed.mean_choices() * num_tokens)
  return even, even if routed.choices is not None else sys.maxsize


def _count(wanted: Bool[Array, 'n e']) -> Float[Array, '']:
  return jnp.sum(wanted, dtype=jnp.float32)


def _flat(x: Shaped[Array, 'g m k']) -> Shaped[Array, 'n k']:
  return x.reshape(-1, x.shape[-1])
