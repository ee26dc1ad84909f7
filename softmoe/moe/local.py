"""The layer on the examples of one device.

Axes: `b` examples, `m` tokens of an example, `g` groups, `t` tokens of a group.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe.moe import experts as experts_lib
from softmoe.moe import groups, routing, totals
from softmoe.moe import part as part_lib
from softmoe.moe.execution import run as execution


class Tokens(NamedTuple):
  """The tokens of a call, with all that belongs to each."""

  x: Any  # (b, m, d), or (g, t, d) once they are in groups
  mask: Any  # (b, m) or None
  ids: Any  # (b, m) or None
  keys: Any  # (b,) or None: of each example, whatever device it is on


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
  implementation: str,
  exchange_chunks: int,
) -> tuple[Float[Array, 'b m d_out'], dict[str, dict[str, Array]]]:
  """Returns the layer's output here, and losses and metrics of all devices.

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
    implementation: of dropless experts.
    exchange_chunks: of what travels.
  """
  tokens, grouped = _group(tokens, size, across)
  routed, aux = _route(router, static | arrays, grouped)
  result = execution.run(
    routed,
    grouped.x,
    experts,
    part.experts,
    implementation,
    exchange_chunks,
    grouped.mask,
    _group_keys(grouped, tokens.x.shape[1] if across else 1),
    part.whole,
  )
  y = groups.join(result.y, tokens.x.shape[:2], across)
  every = None if shared is None else _shared(shared, tokens)
  if tokens.mask is not None:
    hide = lambda v: jnp.where(tokens.mask[..., None], v, 0)
    y, every = jax.tree.map(hide, (y, every))
  real = grouped.mask
  if real is None:
    real = jnp.ones(grouped.x.shape[:2], bool)
  rules = {name: routing.rule(router, name) for name in aux.steer}
  y = part.merge_output(y, every)
  return y, totals.totals(aux, result, real, experts.flops(), rules, part.total)


def route(
  static: dict[str, Any],
  part: part_lib.Part,
  arrays: dict[str, jax.Array],
  router: routing.Router,
  tokens: Tokens,
  *,
  size: int,
  across: bool,
) -> tuple[routing.Slots | routing.Assignment, tuple[()]]:
  """Returns where the tokens of this device go; see `apply`."""
  tokens, grouped = _group(tokens, size, across)
  routed, _ = _route(router, static | arrays, grouped)
  shape = tokens.x.shape[:2]
  join = lambda v: part.merge(groups.join(v, shape, across))
  return jax.tree.map(join, execution.grant(routed)), ()


def _group(tokens: Tokens, size: int, across: bool) -> tuple[Tokens, Tokens]:
  """Returns the tokens with zeros for padding, as they are and in groups."""
  x, mask, ids, keys = tokens
  if mask is not None:
    x = jnp.where(mask[..., None], x, 0)  # NaN in padding must not spread
  if keys is not None:
    keys = jnp.broadcast_to(keys[:, None], x.shape[:2])
  grouped = (
    None if v is None else groups.split(v, size, across)
    for v in (x, mask, ids, keys)
  )
  return tokens._replace(x=x), Tokens(*grouped)


def _route(
  router: routing.Router, options: dict[str, Any], grouped: Tokens
) -> tuple[Any, routing.Aux]:
  return jax.vmap(functools.partial(_route_group, router, options))(grouped)


def _route_group(
  router: routing.Router, options: dict[str, Any], group: Tokens
) -> tuple[Any, routing.Aux]:
  if group.ids is not None:
    options = options | {'token_ids': group.ids}
  # The noise of a group is that of its first example.
  key = None if group.keys is None else group.keys[0]
  return router(group.x, mask=group.mask, key=key, **options)


def _group_keys(grouped: Tokens, per_block: int) -> Any:
  """Returns a key for what experts do with each group (g,), or None.

  Args:
    grouped: tokens in groups.
    per_block: neighbouring groups whose first example is the same.
  """
  if grouped.keys is None:
    return None
  index = jnp.arange(len(grouped.keys)) % per_block
  return jax.vmap(jax.random.fold_in)(grouped.keys[:, 0], index)


def _shared(shared: Any, tokens: Tokens) -> Float[Array, 'b m d_out']:
  if not experts_lib.takes_key(shared):
    return shared(tokens.x)
  if tokens.keys is None:
    return shared(tokens.x, key=None)
  return jax.vmap(lambda x, key: shared(x, key=key))(tokens.x, tokens.keys)
