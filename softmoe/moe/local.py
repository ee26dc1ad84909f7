"""The layer on the examples of one device.

Axes: `b` examples, `m` tokens of an example, `g` groups, `t` tokens of a group.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe.moe import experts as experts_lib
from softmoe.moe import forced, groups, pieces, routing, totals
from softmoe.moe import part as part_lib
from softmoe.moe.execution import run as execution

# What a key is folded with for what draws of it beside the router, which takes
# it as it is; positions and pieces count from 0.
EXPERTS, SHARED = 0, 2**31 - 1


class Tokens(NamedTuple):
  """The tokens of a call, with all that belongs to each."""

  x: Any  # (b, m, d), or (g, t, d) once they are in groups
  mask: Any  # (b, m) or None
  ids: Any  # (b, m) or None
  keys: Any  # (b,) or None: of each example, on any device; or (g,)
  segments: Any = None  # (b, m) or None; for pieces, as is what follows
  cache: Any = None  # a `pieces.Cache` or None


def apply(
  static: dict[str, Any],
  part: part_lib.Part,
  arrays: dict[str, jax.Array],
  router: routing.Router,
  experts: experts_lib.Experts,
  shared: Any,
  tokens: Tokens,
  *,
  size: int,
  across: bool,
  piece: int | None,
  implementation: str,
  exchange_chunks: int,
  buffer_factor: float,
  forced_routing: str,
) -> tuple[Any, dict[str, dict[str, Array]]]:
  """Returns output and cache here, and losses and metrics of all devices.

  Args:
    static: options for the router that are not arrays.
    part: which device this is.
    arrays: options for the router.
    router: of all experts.
    experts: those of this device.
    shared: module for every token, or None.
    tokens: of this device.
    size: examples of a group.
    across: whether a group goes across examples.
    piece: tokens of a piece; None: examples stay whole. See `pieces`.
    implementation: of dropless experts.
    exchange_chunks: of what travels.
    buffer_factor: of dropless experts.
    forced_routing: '' for the router's own; see `forced`.

  Returns:
    The output (b, m, d_out) and the cache, or None without one, of this device;
    and the sums over all of them.
  """
  tokens = _hide_padding(tokens)
  cut = _cut(tokens, piece)
  laid = _lay_out(tokens, cut)
  grouped = _group(laid, size, across)
  options = static | arrays
  routed, aux = _factors(router, options, grouped, cut) or _route(
    router, options, grouped, cut
  )
  if forced_routing:
    routed = forced.force(routed, forced_routing, grouped.mask)
  real = grouped.mask if cut is None else cut.by_piece(cut.is_new())
  experts = experts.merged()
  result = execution.run(
    routed,
    grouped.x,
    experts,
    part.experts,
    implementation,
    exchange_chunks,
    buffer_factor,
    real,
    _fold(grouped.keys, EXPERTS),
    part.whole,
    None if cut is None else cut.relay(tokens.cache),
  )
  y = _join(result.y, laid, cut, across)
  every = None if shared is None else _shared(shared, tokens)
  if tokens.mask is not None:
    hide = lambda v: jnp.where(tokens.mask[..., None], v, 0)
    y, every = jax.tree.map(hide, (y, every))
  if real is None:
    real = jnp.ones(grouped.x.shape[:2], bool)
  rules = {name: routing.rule(router, name) for name in aux.steer}
  y = part.merge_output(y, every)
  flops = experts.flops()
  sums = totals.totals(aux, result, real, flops, rules, part.total)
  return (y, _grow(cut, result.last, part)), sums


def route(
  static: dict[str, Any],
  part: part_lib.Part,
  arrays: dict[str, jax.Array],
  router: routing.Router,
  tokens: Tokens,
  *,
  size: int,
  across: bool,
  piece: int | None,
) -> tuple[routing.Slots | routing.Assignment, tuple[()]]:
  """Returns where the tokens of this device go; see `apply`."""
  tokens = _hide_padding(tokens)
  cut = _cut(tokens, piece)
  laid = _lay_out(tokens, cut)
  grouped = _group(laid, size, across)
  routed, _ = _route(router, static | arrays, grouped, cut)
  join = lambda v: part.merge(_join(v, laid, cut, across))
  return jax.tree.map(join, execution.grant(routed)), ()


def _hide_padding(tokens: Tokens) -> Tokens:
  if tokens.mask is None:
    return tokens
  # NaN in padding must not spread.
  return tokens._replace(x=jnp.where(tokens.mask[..., None], tokens.x, 0))


def _cut(tokens: Tokens, piece: int | None) -> pieces.Cut | None:
  if piece is None:
    return None
  x, mask, _, _, segments, cache = tokens
  return pieces.cut(x, mask, segments, piece, cache)


def _lay_out(tokens: Tokens, cut: pieces.Cut | None) -> Tokens:
  """Returns the tokens that are routed; pieces are examples of their own."""
  if cut is None:
    return tokens
  x, mask = map(cut.by_piece, (cut.x, cut.writes()))
  return Tokens(x, mask, None, _number(tokens.keys, cut.num))


def _group(tokens: Tokens, size: int, across: bool) -> Tokens:
  """Returns the tokens in groups, with the key of each one's first example."""
  x, mask, ids, keys, *_ = tokens
  split = lambda v: None if v is None else groups.split(v, size, across)
  keys = None if keys is None else keys[::size]
  keys = _number(keys, x.shape[1]) if across else keys
  return Tokens(split(x), split(mask), split(ids), keys)


def _join(
  v: Array, laid: Tokens, cut: pieces.Cut | None, across: bool
) -> Array:
  """Returns what groups have of the tokens of the call."""
  v = groups.join(v, laid.x.shape[:2], across)
  return v if cut is None else cut.new(v)


def _grow(
  cut: pieces.Cut | None, last: Array | None, part: part_lib.Part
) -> pieces.Cache | None:
  """Returns the cache for what comes after, alike on all copies."""
  if cut is None or last is None:
    return None
  *rest, outputs = cut.grown(last)
  outputs = part.merge_output(outputs, None)
  return pieces.Cache(*map(part.merge, rest), outputs=outputs)


@jax.named_scope('router')
def _factors(
  router: routing.Router,
  options: dict[str, Any],
  grouped: Tokens,
  cut: pieces.Cut | None,
) -> tuple[routing.Factors, routing.Aux] | None:
  """Returns what weights are made of, where the router says so."""
  factors = getattr(router, 'factors', None)
  if factors is None or cut is not None:
    return None
  routed = factors(grouped.x, mask=grouped.mask, **options)
  return None if routed is None else (routed, routing.Aux())


def _route(
  router: routing.Router,
  options: dict[str, Any],
  grouped: Tokens,
  cut: pieces.Cut | None,
) -> tuple[Any, routing.Aux]:
  route = functools.partial(_route_group, router, options)
  routed, aux = jax.vmap(route)(grouped)
  return routed if cut is None else cut.limit(routed), aux


@jax.named_scope('router')
def _route_group(
  router: routing.Router, options: dict[str, Any], group: Tokens
) -> tuple[Any, routing.Aux]:
  if group.ids is not None:
    options = options | {'token_ids': group.ids}
  return router(group.x, mask=group.mask, key=group.keys, **options)


def _fold(keys: Any, data: int) -> Any:
  """Returns keys for something else, or None."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
  return None if keys is None else fold(keys, data)


def _number(keys: Any, parts: int) -> Any:
  """Returns a key for each part of each of n, (n parts,), or None."""
  if keys is None:
    return None
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  number = jax.vmap(fold, in_axes=(0, None))
  return number(keys, jnp.arange(parts)).reshape(-1)


def _shared(shared: Any, tokens: Tokens) -> Float[Array, 'b m d_out']:
  if not experts_lib.takes_key(shared):
    return shared(tokens.x)
  if tokens.keys is None:
    return shared(tokens.x, key=None)
  keys = _fold(tokens.keys, SHARED)
  return jax.vmap(lambda x, key: shared(x, key=key))(tokens.x, keys)
