"""Experts at work on what a router sends them, here or on other devices.

Runs inside `jax.shard_map`, or on one device outside of any. Axes: `g` groups,
`m` tokens of a group, `n` tokens of all groups, `d` width, `e` experts, `s`
slots of one expert.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe import experts as experts_lib
from softmoe.moe import pieces, routing
from softmoe.moe.execution import attend, dispatch, exchange, pairs

# Up to so many weights (tokens x slots) of a group, a TPU moves rows by matmuls
# with one-hot weights, since it gathers and scatters slowly. On a CPU gathering
# was faster at every size that was tried.
ONE_HOT_LIMIT = 2**16
# A buffer of dropless experts has room for so many times an even load.
BUFFER_FACTOR = 1.25
IMPLEMENTATIONS = ('auto', 'fused', 'grouped')
AtExperts = Callable[[Array], Array]  # (e, g, s, d) -> (e, g, s, d_out)
Mine = Callable[..., Array]  # of an array, the experts of this device


class Result(NamedTuple):
  """What the experts gave back.

  Attributes:
    y: for every token, the combined outputs of its experts.
    means: metrics of each group, means over its slots, tokens or experts.
    counts: metrics that are sums of (token, expert) pairs on this device.
    last: outputs that the next piece of each example would get, where a relay
      goes on from some.
  """

  y: Float[Array, 'g m d_out']
  means: dict[str, Float[Array, ' g']]
  counts: dict[str, Float[Array, '']]
  last: Float[Array, 'b e s d_out'] | None = None


def run(
  routed: routing.Slots | routing.Factors | routing.Assignment,
  x: Float[Array, 'g m d'],
  experts: experts_lib.Experts,
  axis: str | None,
  implementation: str,
  exchange_chunks: int = 1,
  buffer_factor: float = BUFFER_FACTOR,
  mask: Bool[Array, 'g m'] | None = None,
  keys: Key[Array, ' g'] | None = None,
  whole: bool = False,
  relay: pieces.Relay | None = None,
) -> Result:
  """Returns the experts' outputs, combined for each token, and metrics.

  Args:
    routed: where tokens go.
    x: tokens.
    experts: those of this device.
    axis: mesh axis that the experts are split over; None: they are all here.
    implementation: of dropless experts, one of IMPLEMENTATIONS.
    exchange_chunks: of what slots hold; see `at_experts`.
    buffer_factor: of dropless experts; see `pairs.run`.
    mask: False where a token is padding, which metrics leave out.
    keys: of each group (g,), for experts that take them; None: evaluation.
    whole: the devices of `axis` hold the same tokens. Nothing travels then, and
      what comes back of y is the share of this device's experts.
    relay: hands outputs of slots to the next group; None: they stay in theirs.

  Raises:
    UserError: the slots do not fill the chunks, or there are none, or experts
      that are dropless take keys.
  """
  mine: Mine = functools.partial(_mine, axis) if whole else _all
  copied, axis = (axis, None) if whole else (None, axis)
  if keys is not None:
    keys = _keys(keys, routed.num_experts) if experts.take_key else None
    keys = None if keys is None else mine(keys, 0)
  at = functools.partial(
    at_experts, experts, axis=axis, chunks=exchange_chunks, keys=keys
  )
  if isinstance(routed, routing.Slots):
    result = run_slots(routed, x, at, mask, mine, relay)
    if copied is None or result.last is None:
      return result
    return result._replace(last=_among_all(copied, result.last, 1))
  if isinstance(routed, routing.Factors):
    return run_factors(routed, x, at, mask, mine, copied)
  if routed.capacity is not None:
    return run_capacity(routed, routed.capacity, x, at, mine)
  if exchange_chunks != 1:
    expected = '1, since dropless experts have no slots'
    raise UserError('exchange_chunks', exchange_chunks, expected)
  if experts.take_key:
    expected = 'calls without `key`, or a router with slots or a capacity'
    raise UserError('experts', 'calls that take `key`', expected)
  ran = pairs.run(routed, x, experts, axis, implementation, buffer_factor, mine)
  wanted = routed.wanted()
  means = {'used_experts': jnp.mean(jnp.any(wanted, axis=1), axis=1)}
  if ran.rounds is not None:
    means['rounds'] = jnp.full(len(x), ran.rounds, jnp.float32)
  wanted = _count(wanted)
  counts = {'wanted': wanted, 'granted': wanted, 'executed': ran.executed}
  return Result(ran.y, means, counts)


def grant(
  routed: routing.Slots | routing.Assignment,
) -> routing.Slots | routing.Assignment:
  """Returns the routing with the pairs that experts keep."""
  if isinstance(routed, routing.Slots):
    return routed
  granted = routed.wanted()
  if routed.capacity is not None:
    kept = dispatch.keep(routed, routed.capacity)
    granted = dispatch.granted(kept, granted.shape[1])
  return dataclasses.replace(routed, granted=granted)


def _all(x: Array, along: int) -> Array:
  return x


def _mine(axis: str | None, x: Array, along: int) -> Array:
  size = x.shape[along] // jax.lax.axis_size(axis)
  start = size * jax.lax.axis_index(axis)
  return jax.lax.dynamic_slice_in_dim(x, start, size, along)


def _among_all(axis: str, x: Array, along: int) -> Array:
  """Returns what `_mine` takes x from, with 0 for what others have."""
  size, devices = x.shape[along], jax.lax.axis_size(axis)
  shape = (*x.shape[:along], devices * size, *x.shape[along + 1 :])
  start = size * jax.lax.axis_index(axis)
  zeros = jnp.zeros(shape, x.dtype)
  return jax.lax.dynamic_update_slice_in_dim(zeros, x, start, along)


def _keys(keys: Key[Array, ' g'], num_experts: int) -> Key[Array, 'e g']:
  """Returns a key for each expert and group, (e, g)."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
  return jax.vmap(fold, in_axes=(None, 0))(keys, jnp.arange(num_experts))


def run_slots(
  routed: routing.Slots,
  x: Float[Array, 'g m d'],
  at_experts: AtExperts,
  mask: Bool[Array, 'g m'] | None = None,
  mine: Mine = _all,
  relay: pieces.Relay | None = None,
) -> Result:
  """Runs experts on dense mixtures of tokens."""
  weights, last, ran = mine(routed.dispatch, 2), None, True
  work = lambda: at_experts(dispatch.dispatch(x, weights))
  if relay is None:
    outputs = work()
  else:
    (outputs, last), ran = relay.run(work, mine), relay.runs
  y = dispatch.combine(outputs, mine(routed.combine, 2))
  means = {
    'dispatch_max': jnp.mean(jnp.max(routed.dispatch, axis=1), axis=(1, 2)),
    'combine_max': jax.vmap(routing.mean_over_tokens)(
      jnp.max(routed.combine, axis=(2, 3)), mask
    ),
  }
  executed = _count(routed.dispatch[:, 0].size) * ran
  return Result(y, means, {'executed': executed}, last)


def run_factors(
  routed: routing.Factors,
  x: Float[Array, 'g m d'],
  at_experts: AtExperts,
  mask: Bool[Array, 'g m'] | None = None,
  mine: Mine = _all,
  axis: str | None = None,
) -> Result:
  """Does what `run_slots` does, and makes weights a tile at a time.

  Args:
    routed: what the weights are made of.
    x: tokens.
    at_experts: runs the experts of this device or, without `axis`, of all.
    mask: False where a token is padding, which metrics leave out.
    mine: of an array along an axis, what this device's experts have.
    axis: mesh axis that slots are split over; None: they are all here.
  """
  slots, groups = mine(routed.slots, 1), len(x)
  k, e, s = slots.shape
  slots = slots.reshape(k, e * s).T
  taken = attend.dispatch(x, routed.tokens, slots, routed.mask)
  y = at_experts(jnp.swapaxes(taken.mean.reshape(groups, e, s, -1), 0, 1))
  y = jnp.swapaxes(y, 0, 1).reshape(groups, e * s, -1)
  given = attend.combine(y, routed.tokens, slots)
  filled = jnp.mean(taken.peak, axis=1)
  if axis is not None:
    filled, given = jax.lax.pmean(filled, axis), _among_slots(given, axis)
  means = {
    'dispatch_max': filled,
    'combine_max': jax.vmap(routing.mean_over_tokens)(given.peak, mask),
  }
  executed = _count(groups * routed.slots[0].size)
  return Result(given.mean, means, {'executed': executed})


def _among_slots(given: attend.Attended, axis: str) -> attend.Attended:
  """Returns the share of this device's slots in the means over all slots."""
  every = jax.lax.all_gather(given.log_sum, axis)
  log_sum = jax.nn.logsumexp(every, axis=0)
  share = jnp.exp(given.log_sum - log_sum)
  peak = jax.lax.pmax(jax.lax.stop_gradient(given.peak * share), axis)
  mean = (given.mean * share[..., None]).astype(given.mean.dtype)
  return attend.Attended(mean, log_sum, peak)


def run_capacity(
  routed: routing.Assignment,
  capacity: int,
  x: Float[Array, 'g m d'],
  at_experts: AtExperts,
  mine: Mine = _all,
) -> Result:
  """Runs experts on the tokens they keep, in buffers of fixed size."""
  kept = dispatch.keep(routed, capacity)
  means = {'used_experts': jnp.mean(jnp.any(kept.filled, axis=2), axis=1)}
  counts = {
    'wanted': _count(routed.wanted()),
    'granted': _count(kept.filled),
    'executed': _count(kept.token.size),
  }
  kept, num_tokens = dispatch.Kept(*(mine(v, 1) for v in kept)), x.shape[1]
  small = num_tokens * kept.token[0].size <= ONE_HOT_LIMIT
  if small and sharding.platform() == 'tpu':
    slots = dispatch.as_slots(kept, num_tokens)
    y = at_experts(dispatch.dispatch(x, slots.dispatch))
    y = dispatch.combine(y, slots.combine)
  else:
    y = at_experts(dispatch.gather(x, kept))
    y = dispatch.scatter(y, kept, num_tokens)
  return Result(y, means, counts)


def at_experts(
  experts: experts_lib.Experts,
  slots: Float[Array, 'e g s d'],
  axis: str | None,
  chunks: int = 1,
  keys: Key[Array, 'e g'] | None = None,
) -> Float[Array, 'e g s d_out']:
  """Runs every expert on its slots: one all-to-all there, one back.

  Args:
    experts: those of this device.
    slots: of all experts.
    axis: mesh axis that the experts are split over; None: they are all here.
    chunks: in so many parts, of groups if they divide, else of an expert's
      slots, so that one part may travel while experts work on another.
    keys: (e, g) of all experts and groups; None: without.

  Raises:
    UserError: neither groups nor slots divide.
  """
  if axis is None:
    return experts(slots, keys)
  g, s = slots.shape[1:3]
  along = 1 if g % chunks == 0 else 2
  if slots.shape[along] % chunks:
    expected = f'a divisor of {g} groups on a device or {s} slots of an expert'
    raise UserError('exchange_chunks', chunks, expected)
  there_and_back = functools.partial(_exchange, experts, axis)
  parts = zip(
    jnp.split(slots, chunks, along), _split(keys, chunks, along), strict=True
  )
  return jnp.concatenate([there_and_back(*part) for part in parts], along)


def _split(
  keys: Key[Array, 'e g'] | None, chunks: int, along: int
) -> Sequence[Key[Array, 'e _'] | None]:
  """Returns the keys of each part: of its groups, or new ones for its slots."""
  if keys is None or chunks == 1:
    return [keys] * chunks
  if along == 1:
    return jnp.split(keys, chunks, 1)
  fold = jnp.vectorize(jax.random.fold_in, excluded=(1,))
  return [fold(keys, i) for i in range(chunks)]


@jax.named_scope('exchange')
def _exchange(
  experts: experts_lib.Experts,
  axis: str,
  slots: Float[Array, 'e g s d'],
  keys: Key[Array, 'e g'] | None,
) -> Float[Array, 'e g s d_out']:
  # Blocks go to the devices along axis 0 and come back along it, since other
  # forms of the collective make a TPU copy what it sends.
  devices, (e, g, s, d) = jax.lax.axis_size(axis), slots.shape
  slots = slots.reshape(devices, e // devices, g * s, d)
  slots = jax.lax.all_to_all(slots, axis, 0, 0, tiled=True)
  slots = exchange.arrived(slots)
  slots = jnp.swapaxes(slots, 0, 1).reshape(e // devices, -1, d)
  if keys is not None:
    slots = slots.reshape(e // devices, devices * g, s, d)
    keys = _exchange_keys(keys, axis)
  y = experts(slots, keys).reshape(e // devices, devices, g * s, -1)
  y = jax.lax.all_to_all(jnp.swapaxes(y, 0, 1), axis, 0, 0, tiled=True)
  y = exchange.arrived(y)
  return y.reshape(e, g, s, -1)


def _exchange_keys(
  keys: Key[Array, 'e g'], axis: str
) -> Key[Array, 'e_here g_all']:
  """Returns the keys of the experts here and the groups of all devices."""
  devices, (e, g) = jax.lax.axis_size(axis), keys.shape
  data = jax.random.key_data(keys).reshape(devices, e // devices, g, -1)
  data = exchange.arrived(jax.lax.all_to_all(data, axis, 0, 0, tiled=True))
  data = jnp.swapaxes(data, 0, 1).reshape(e // devices, devices * g, -1)
  return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def _count(x: jax.typing.ArrayLike) -> Float[Array, '']:
  return jnp.sum(jnp.asarray(x, jnp.float32))
