"""Experts at work on what a router sends them, here or on other devices.

Runs inside `jax.shard_map`, or on one device outside of any. Axes: `g` groups,
`m` tokens of a group, `n` tokens of all groups, `d` width, `e` experts, `s`
slots of one expert.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Shaped

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe import experts as experts_lib
from softmoe.moe import routing
from softmoe.moe.execution import dispatch, dropless, exchange

# Up to so many weights (tokens x slots) of a group, a TPU moves rows by matmuls
# with one-hot weights, since it gathers and scatters slowly. On a CPU gathering
# was faster at every size that was tried.
ONE_HOT_LIMIT = 2**16
# What `jax.checkpoint` policies call that which came through an all-to-all.
EXCHANGED = 'exchanged'
IMPLEMENTATIONS = ('auto', 'fused', 'grouped')
AtExperts = Callable[[Array], Array]  # (e, g, s, d) -> (e, g, s, d_out)


class Result(NamedTuple):
  """What the experts gave back.

  Attributes:
    y: for every token, the combined outputs of its experts.
    means: metrics of each group, means over its slots or tokens.
    counts: metrics that are sums of (token, expert) pairs on this device.
  """

  y: Float[Array, 'g m d_out']
  means: dict[str, Float[Array, ' g']]
  counts: dict[str, Float[Array, '']]


def run(
  routed: routing.Slots | routing.Assignment,
  x: Float[Array, 'g m d'],
  experts: experts_lib.Experts,
  axis: str | None,
  implementation: str,
  exchange_chunks: int = 1,
  mask: Bool[Array, 'g m'] | None = None,
) -> Result:
  """Returns the experts' outputs, combined for each token, and metrics.

  Args:
    routed: where tokens go.
    x: tokens.
    experts: those of this device.
    axis: mesh axis that the experts are split over; None: they are all here.
    implementation: of dropless experts, one of IMPLEMENTATIONS.
    exchange_chunks: of what slots hold; see `at_experts`.
    mask: False where a token is padding, which metrics leave out.

  Raises:
    UserError: the slots do not fill the chunks, or there are none.
  """
  at = functools.partial(at_experts, experts, axis=axis, chunks=exchange_chunks)
  if isinstance(routed, routing.Slots):
    return run_slots(routed, x, at, mask)
  if routed.capacity is not None:
    return run_capacity(routed, routed.capacity, x, at)
  if exchange_chunks != 1:
    expected = '1, since dropless experts have no slots'
    raise UserError('exchange_chunks', exchange_chunks, expected)
  return run_dropless(routed, x, experts, axis, implementation)


def run_slots(
  routed: routing.Slots,
  x: Float[Array, 'g m d'],
  at_experts: AtExperts,
  mask: Bool[Array, 'g m'] | None = None,
) -> Result:
  """Runs experts on dense mixtures of tokens."""
  slots = dispatch.dispatch(x, routed.dispatch)
  y = dispatch.combine(at_experts(slots), routed.combine)
  means = {
    'dispatch_max': jnp.mean(jnp.max(routed.dispatch, axis=1), axis=(1, 2)),
    'combine_max': jax.vmap(routing.mean_over_tokens)(
      jnp.max(routed.combine, axis=(2, 3)), mask
    ),
  }
  return Result(y, means, {'executed': _count(slots[..., 0].size)})


def run_capacity(
  routed: routing.Assignment,
  capacity: int,
  x: Float[Array, 'g m d'],
  at_experts: AtExperts,
) -> Result:
  """Runs experts on the tokens they keep, in buffers of fixed size."""
  kept = dispatch.keep(routed, capacity)
  num_tokens = x.shape[1]
  small = num_tokens * kept.token[0].size <= ONE_HOT_LIMIT
  if small and sharding.platform() == 'tpu':
    slots = dispatch.as_slots(kept, num_tokens)
    y = at_experts(dispatch.dispatch(x, slots.dispatch))
    y = dispatch.combine(y, slots.combine)
  else:
    y = at_experts(dispatch.gather(x, kept))
    y = dispatch.scatter(y, kept, num_tokens)
  counts = {
    'wanted': _count(routed.wanted()),
    'granted': _count(kept.filled),
    'executed': _count(kept.token.size),
  }
  return Result(y, {}, counts)


def at_experts(
  experts: experts_lib.Experts,
  slots: Float[Array, 'e g s d'],
  axis: str | None,
  chunks: int = 1,
) -> Float[Array, 'e g s d_out']:
  """Runs every expert on its slots: one all-to-all there, one back.

  Args:
    experts: those of this device.
    slots: of all experts.
    axis: mesh axis that the experts are split over; None: they are all here.
    chunks: in so many parts, of groups if they divide, else of an expert's
      slots, so that one part may travel while experts work on another.

  Raises:
    UserError: neither groups nor slots divide.
  """
  if axis is None:
    return experts(slots)
  g, s = slots.shape[1:3]
  along = 1 if g % chunks == 0 else 2
  if slots.shape[along] % chunks:
    expected = f'a divisor of {g} groups on a device or {s} slots of an expert'
    raise UserError('exchange_chunks', chunks, expected)
  parts = jnp.split(slots, chunks, along)
  parts = [_exchange(experts, part, axis) for part in parts]
  return jnp.concatenate(parts, along)


def _exchange(
  experts: experts_lib.Experts, slots: Float[Array, 'e g s d'], axis: str
) -> Float[Array, 'e g s d_out']:
  # Blocks go to the devices along axis 0 and come back along it, since other
  # forms of the collective make a TPU copy what it sends.
  devices, (e, g, s, d) = jax.lax.axis_size(axis), slots.shape
  slots = slots.reshape(devices, e // devices, g * s, d)
  slots = jax.lax.all_to_all(slots, axis, 0, 0, tiled=True)
  slots = checkpoint_name(slots, EXCHANGED)
  slots = jnp.swapaxes(slots, 0, 1).reshape(e // devices, -1, d)
  y = experts(slots).reshape(e // devices, devices, g * s, -1)
  y = jax.lax.all_to_all(jnp.swapaxes(y, 0, 1), axis, 0, 0, tiled=True)
  y = checkpoint_name(y, EXCHANGED)
  return y.reshape(e, g, s, -1)


def run_dropless(
  routed: routing.Assignment,
  x: Float[Array, 'g m d'],
  experts: experts_lib.Experts,
  axis: str | None,
  implementation: str,
) -> Result:
  """Runs experts on all the tokens that want them."""
  if implementation == 'auto':
    implementation = choose(sharding.platform(), routed, experts)
  run = run_grouped if implementation == 'grouped' else run_fused
  y, executed = run(routed, _flat(x), experts, axis)
  wanted = _count(routed.wanted())
  counts = {'wanted': wanted, 'granted': wanted, 'executed': executed}
  return Result(y.reshape(*x.shape[:2], -1), {}, counts)


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


def run_fused(
  routed: routing.Assignment,
  x: Float[Array, 'n d'],
  experts: experts_lib.Experts,
  axis: str | None,
) -> tuple[Float[Array, 'n d_out'], Float[Array, '']]:
  """Runs expert after expert on chunks of the tokens that want it.

  Over a mesh axis, every device collects the tokens of the axis, works for its
  own experts, and the partial sums are added where the tokens live.
  """
  gates, wanted = _flat(routed.gates), _flat(routed.wanted())
  if axis is not None:
    x = jax.lax.all_gather(x, axis, tiled=True)
    gates = jax.lax.all_to_all(gates, axis, 1, 0, tiled=True)
    wanted = jax.lax.all_to_all(wanted, axis, 1, 0, tiled=True)
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
  return y, dropless.executed(wanted)


def run_grouped(
  routed: routing.Assignment,
  x: Float[Array, 'n d'],
  experts: experts_lib.Experts,
  axis: str | None,
) -> tuple[Float[Array, 'n d_out'], Float[Array, '']]:
  """Runs all experts by grouped matmuls on rows that are sorted by expert.

  Over a mesh axis, the rows travel to their experts and back, as many as there
  are.
  """
  gates, wanted = _flat(routed.gates), _flat(routed.wanted())
  choices = routed.choices or wanted.shape[1]
  grouped = experts.stacked.grouped
  if axis is not None:
    devices = jax.lax.axis_size(axis)
    most = min(choices, wanted.shape[1] // devices)
    grouped = exchange.at_owners(grouped, axis, devices * len(x) * most)
  y = dropless.apply_grouped(grouped, x, gates, wanted, len(x) * choices)
  return y, _count(wanted)


def _flat(x: Shaped[Array, 'g m k']) -> Shaped[Array, 'n k']:
  return x.reshape(-1, x.shape[-1])


def _count(x: jax.typing.ArrayLike) -> Float[Array, '']:
  return jnp.sum(jnp.asarray(x, jnp.float32))
