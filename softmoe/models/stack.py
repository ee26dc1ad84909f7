"""A stack of transformer blocks: made, applied, and as parameters.

Plain functions over the `nnx.List` that a model keeps as its `blocks`. With
`scan`, neighbours of one kind share an entry, whose parameters have a leading
axis of blocks; without, every block is an entry.

Axes: `b` examples, `n` tokens, `d` width.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import attention, blocks, mixtures
from softmoe.models.config import TransformerConfig
from softmoe.moe import mlp
from softmoe.moe.execution import exchange

DTYPES = ('float32', 'bfloat16')
NORMS = ('pre', 'post')
POSITIONS = ('none', 'learned', 'rotary')


def runs(config: TransformerConfig) -> list[tuple[bool, int]]:
  """Returns (is MoE, number of blocks) of each entry of the stack."""
  if config.scan:
    return _alike(config)
  return [(kind, 1) for kind, size in _alike(config) for _ in range(size)]


def _alike(config: TransformerConfig) -> list[tuple[bool, int]]:
  """Returns (is MoE, number of blocks) of neighbours of one kind."""
  kinds = [i in config.moe.blocks for i in range(config.depth)]
  return [(kind, len(list(g))) for kind, g in itertools.groupby(kinds)]


def make_blocks(
  config: TransformerConfig, rngs: nnx.Rngs, *, cross: bool = False
) -> list[Any]:
  """Creates the blocks; block i has the same parameters, stacked or not.

  Neighbours of one kind are made as one: the program that draws parameters is
  as long as one block's, and so is the time to trace and to compile it.

  Args:
    config: of the stack.
    rngs: source of the parameters' keys.
    cross: whether the blocks read a memory.
  """
  keys = jax.random.split(rngs.params(), config.depth)
  made, start = [], 0
  for moe, length in _alike(config):
    create = lambda key, moe=moe: blocks.Block(
      config, moe=moe, cross=cross, rngs=nnx.Rngs(key)
    )
    run = jax.vmap(create)(keys[start : start + length])
    made += [_mark(run)] if config.scan else _apart(run, length)
    start += length
  return made


def _mark(run: Any) -> Any:
  """Returns stacked blocks whose parameters say that they are."""
  for _, node in nnx.iter_graph(run):
    if isinstance(node, nnx.Variable):
      node.set_metadata(stacked=True)
  return run


def _apart(run: Any, length: int) -> list[Any]:
  """Returns stacked blocks one by one."""
  return [jax.tree.map(lambda v, i=i: v[i], run) for i in range(length)]


def init_caches(
  config: TransformerConfig, batch: int, length: int
) -> list[blocks.Cache]:
  """Returns an empty cache for each entry; see `attention.init_cache`."""
  make = lambda moe: blocks.init_cache(config, batch, length, moe=moe)
  one = {moe: make(moe) for moe, _ in runs(config)}
  if not config.scan:
    return [one[moe] for moe, _ in runs(config)]
  many = lambda v, size: jnp.stack([v] * size)
  return [
    jax.tree.map(lambda v, size=size: many(v, size), one[moe])
    for moe, size in runs(config)
  ]


def place_caches(
  caches: list[blocks.Cache], like: Array, config: TransformerConfig
) -> list[blocks.Cache]:
  """Returns the caches with their examples where those of `like` are."""
  if not sharding.is_explicit('data'):
    return caches
  axis = int(config.scan)  # which leads
  spec = jax.P(*(None,) * axis, jax.typeof(like).sharding.spec[0])
  place = lambda v: jax.reshard(v, spec) if v.ndim > axis else v
  return jax.tree.map(place, caches)


def take_hypotheses(
  caches: list[blocks.Cache],
  parents: Int[Array, 'b k'],
  config: TransformerConfig,
) -> list[blocks.Cache]:
  """Returns the caches of other hypotheses of the same examples.

  Args:
    caches: of b k rows, the k of an example side by side. What they have of a
      memory is the same for these, and stays.
    parents: the hypothesis of its example that each takes the place of.
    config: of the stack.
  """
  axis = int(config.scan)  # which leads
  take = functools.partial(sharding.by_example, _take_hypotheses)
  if config.scan:
    take = jax.vmap(take, (0, None))
  # What has no axis of examples is a length, the same for all.
  own = lambda v: take(v, parents) if v.ndim > axis else v
  return [
    jax.tree.map(own, cache._replace(memory=None))._replace(memory=cache.memory)
    for cache in caches
  ]


def _take_hypotheses(v: Array, parents: Int[Array, 'b k']) -> Array:
  """Returns rows (b k, ...) of the parents."""
  each = v.reshape(*parents.shape, *v.shape[1:])
  return jax.vmap(lambda v, i: v[i])(each, parents).reshape(v.shape)


def read_memory(
  entries: Sequence[Any],
  config: TransformerConfig,
  caches: list[blocks.Cache],
  memory: Float[Array, 'b n d'],
) -> list[blocks.Cache]:
  """Returns the caches with what each block reads of a memory."""
  read = lambda block: block.read(memory)
  if config.scan:
    read = lambda entry: jax.lax.map(lambda block: block.read(memory), entry)
  return [
    cache._replace(memory=read(entry))
    for cache, entry in zip(caches, entries, strict=True)
  ]


def apply_blocks(
  entries: Sequence[Any],
  config: TransformerConfig,
  x: Float[Array, 'b n d'],
  key: blocks.Key = None,
  *,
  caches: list[blocks.Cache] | None = None,
  **shared: Any,
) -> tuple[Float[Array, 'b n d'], dict[str, Any], list[blocks.Cache] | None]:
  """Runs the blocks in order, a run of stacked ones by one `scan`.

  Args:
    entries: of `make_blocks`.
    config: that they were made with.
    x: tokens.
    key: for dropout, drop path and routing noise; None at evaluation.
    caches: of `init_caches`, or as the last call returned them.
    **shared: arguments of `Block` that are the same for every block, by name:
      `mask`, `token_ids`, `router_options`, `attention_mask`, `causal`,
      `segments`, `positions`, `memory`, `memory_mask`.

  Returns:
    The tokens, the blocks' `aux` merged, and the caches with the tokens added.
  """
  rates = drop_path_rates(config)
  keys = None if key is None else jax.random.split(key, config.depth)
  part = lambda values, i: None if values is None else values[i]
  apply = _checkpoint(
    config, lambda block, x, *per_block: block(x, *per_block, **shared)
  )
  auxes, grown, start = [], [], 0
  for i, (entry, (_, length)) in enumerate(
    zip(entries, runs(config), strict=True)
  ):
    cache = part(caches, i)
    if config.scan:
      span = slice(start, start + length)
      x, (aux, cache) = _scan(
        apply, x, (entry, part(rates, span), part(keys, span), cache)
      )
    else:
      x, aux, cache = apply(
        entry, x, part(rates, start), part(keys, start), cache
      )
      aux = jax.tree.map(lambda v: v[None], aux)
    auxes += [aux] if aux else []
    grown.append(cache)
    start += length
  return x, merge_aux(auxes), None if caches is None else grown


def _scan(apply: Callable, x: Array, stacked: tuple):
  def body(x, per_block):
    x, aux, cache = apply(per_block[0], x, *per_block[1:])
    return x, (aux, cache)

  return jax.lax.scan(body, x, stacked)


def _checkpoint(config: TransformerConfig, apply: Callable) -> Callable:
  """Returns `apply`, whose backward pass finds no more than it should."""
  if config.remat:
    # Of a block no more than what it would take another exchange to have.
    policy = jax.checkpoint_policies.save_only_these_names(exchange.EXCHANGED)
  elif sharding.axis_size('fsdp') > 1:
    policy = sharding.keep_parts
  else:
    return apply
  return jax.checkpoint(apply, prevent_cse=not config.scan, policy=policy)


def drop_path_rates(config: TransformerConfig) -> Float[Array, ' depth'] | None:
  """Returns the rate of each block; None where there is no drop path."""
  rate = config.drop_path
  return jnp.linspace(0.0, rate, config.depth) if rate else None


def merge_aux(auxes: list[dict[str, Any]]) -> dict[str, Any]:
  """Sums the blocks' losses and averages all else, name by name.

  Args:
    auxes: of each entry with an MoE layer, stacked; a name that one lacks is
      left out of that mean.
  """
  merged = {'losses': {}, 'metrics': {}, 'weights': {}}
  for kind in dict.fromkeys(kind for aux in auxes for kind in aux):
    parts = [aux.get(kind, {}) for aux in auxes]
    merge = jnp.sum if kind == 'losses' else jnp.mean
    merged[kind] = {
      name: merge(jnp.concatenate([p[name] for p in parts if name in p]))
      for name in dict.fromkeys(name for p in parts for name in p)
    }
  return merged


# --- As parameters.


def stacked(model: Any) -> dict[str, Any]:
  """Tells of each parameter whether its leading axis is that of a `scan`.

  Args:
    model: with parameters or, from `jax.eval_shape`, without.
  """
  tell = lambda v: v.replace(bool(v.get_metadata().get('stacked', False)))
  is_variable = lambda v: isinstance(v, nnx.Variable)
  state = nnx.state(model, nnx.Param)
  return nnx.to_pure_dict(jax.tree.map(tell, state, is_leaf=is_variable))


def unstack(params: dict[int, Any], config: TransformerConfig) -> dict:
  """Returns the parameters of a stack as they are without `scan`.

  This is the form in which parameters are exchanged between models. Without
  `scan` they have it already.

  Args:
    params: what a model's parameters have under 'blocks', or a tree like it: of
      arrays, of JAX (in the mesh in force) or of NumPy, or of their shapes.
    config: of the stack.
  """
  if not config.scan:
    return params
  unstacked = {}
  for entry, (_, length) in enumerate(runs(config)):
    for i in range(length):
      take = lambda w, i=i: _take(w, i)
      unstacked[len(unstacked)] = jax.tree.map(take, params[entry])
  return unstacked


def stack(params: dict[int, Any], config: TransformerConfig) -> dict:
  """Returns the parameters of a stack as its config has them.

  The inverse of `unstack`, with the same arguments.
  """
  if not config.scan:
    return params
  result, start = {}, 0
  for entry, (_, length) in enumerate(runs(config)):
    each = [params[i] for i in range(start, start + length)]
    result[entry] = jax.tree.map(lambda *w: _join(w), *each)
    start += length
  return result


def _take(w: Any, i: int) -> Any:
  if not isinstance(w, jax.ShapeDtypeStruct):
    return w[i] if isinstance(w, np.ndarray) else _take_array(w, i)
  return w.update(shape=w.shape[1:], sharding=_respec(w, lambda s: s[1:]))


def _take_array(w: jax.Array, i: int) -> jax.Array:
  return jax.lax.index_in_dim(w, i, keepdims=False)


def _join(each: Sequence[Any]) -> Any:
  w = each[0]
  if not isinstance(w, jax.ShapeDtypeStruct):
    return (np if isinstance(w, np.ndarray) else jnp).stack(each)
  shape = (len(each), *w.shape)
  return w.update(shape=shape, sharding=_respec(w, lambda s: (None, *s)))


def _respec(w: jax.ShapeDtypeStruct, change: Callable) -> Any:
  place: Any = w.sharding
  return place and place.update(spec=jax.P(*change(tuple(place.spec))))


# --- Bad input.


def check(config: TransformerConfig) -> None:
  """Raises a UserError that names the first field that fits no transformer."""
  moe, heads, last = config.moe, config.num_heads, config.depth - 1
  floats = f'one of {DTYPES}: the loss is not scaled, as float16 would need'
  for field, valid, expected in (
    (
      'num_heads',
      config.width % heads == 0,
      f'a divisor of the width, {config.width}',
    ),
    ('norm', config.norm in NORMS, f'one of {NORMS}'),
    ('positions', config.positions in POSITIONS, f'one of {POSITIONS}'),
    (
      'activation',
      config.activation in mlp.ACTIVATIONS,
      f'one of {mlp.ACTIVATIONS}',
    ),
    ('dtype', config.dtype in DTYPES, floats),
    ('param_dtype', config.param_dtype in DTYPES, floats),
    (
      'moe.blocks',
      all(0 <= i <= last for i in moe.blocks),
      f'each in 0..{last}',
    ),
    ('moe.blocks', len(set(moe.blocks)) == len(moe.blocks), 'each block once'),
  ):
    require(config, field, valid, expected)
  even = config.positions != 'rotary' or config.width % (2 * heads) == 0
  expected = (
    f"'none' or 'learned': heads have odd width, {config.width // heads}"
  )
  require(config, 'positions', even, expected)
  attention.choose(config.attention, sharding.platform())
  if moe.blocks:
    mixtures.check(moe)


def require(
  config: TransformerConfig, field: str, valid: bool, expected: str
) -> None:
  """Raises a UserError that names a field, unless its value is valid."""
  if not valid:
    given = operator.attrgetter(field)(config)
    raise UserError(f'config.model.{field}', given, expected)
