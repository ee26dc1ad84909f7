"""The MoE layer: a router, experts, and the way between them.

Axes: `*b` any leading axes, `b` examples, `m` tokens, `d` width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe import experts as experts_lib
from softmoe.moe import forced, local, mlp, part, pieces, routing, totals
from softmoe.moe.execution import run as execution
from softmoe.moe.routers import soft


class MoE(nnx.Module):
  """A mixture of experts, in place of the MLP of a transformer block.

      layer = MoE(
        TokensChoice(384, 8, k=2, rngs=rngs),
        Experts(lambda rngs: Mlp(384, 1536, rngs=rngs), 8, rngs=rngs),
      )
      y, aux = layer(x, mask=mask, key=key)  # x and y: (..., tokens, 384)

  It needs no mesh. Under one with explicit axes every device routes its own
  examples, experts are split over the axis `expert`, if there is one, and what
  they work on travels to them and back. How x is split says which examples are
  whose: where it is whole along `expert`, each device works for its own experts
  alone and the outputs are added.
  """

  def __init__(
    self,
    router: routing.Router,
    experts: experts_lib.Experts,
    *,
    shared: Any = None,
    group_size: int = 1,
    implementation: str = 'auto',
    exchange_chunks: int = 1,
    buffer_factor: float = execution.BUFFER_FACTOR,
    forced_routing: str = '',
    check_vma: bool = True,
  ):
    """Puts a router and experts together.

    Args:
      router: says which tokens reach which experts; see `routing.Router`.
      experts: as many as the router knows.
      shared: a module applied to every token beside what is routed, as in
        DeepSeekMoE (https://arxiv.org/abs/2401.06066); None: none. If its call
        takes `key`, it gets one for each example in training.
      group_size: neighbouring examples whose tokens are routed together. A
        router with `across_examples` routes the tokens at one position of
        `router.group_size` examples together instead, one with `segment` the
        tokens of a piece of one example; see `pieces`.
      implementation: of dropless experts: 'fused', 'grouped', or 'auto', which
        `execution.pairs.choose` decides.
      exchange_chunks: parts in which slots travel to their experts and back,
        so that one may travel while experts work on another.
      buffer_factor: of dropless experts on GPU and TPU: a device has room for
        so many times an even load. What is more comes in further rounds.
      forced_routing: 'even' or 'one', for timings of the best and the worst
        case: tokens want all experts equally often, or all the same; '': what
        the router says.
      check_vma: of `jax.shard_map`; False for experts with kernels that do not
        say over which axes of the mesh their results vary.

    Raises:
      ValueError: a size does not fit, a name is unknown, or `shared` has state.
    """
    known = execution.IMPLEMENTATIONS
    if implementation not in known:
      raise UserError('implementation', implementation, f'one of {known}')
    can = experts_lib.has_way(experts.stacked, 'grouped')
    if implementation == 'grouped' and not can:
      expected = "'fused' or 'auto', since the experts have no `grouped`"
      raise UserError('implementation', implementation, expected)
    num_experts = jax.tree.leaves(experts.stacked)[0].shape[0]
    if router.num_experts != num_experts:
      expected = f'{router.num_experts}, as many as the router knows'
      raise UserError('experts', num_experts, expected)
    if group_size < 1:
      raise UserError('group_size', group_size, 'at least 1')
    if group_size > 1 and _piece(router):
      expected = '1, since the router routes segments of one example'
      raise UserError('group_size', group_size, expected)
    if exchange_chunks < 1:
      raise UserError('exchange_chunks', exchange_chunks, 'at least 1')
    if not buffer_factor > 0:
      raise UserError('buffer_factor', buffer_factor, 'above 0')
    if forced_routing not in forced.KINDS:
      raise UserError(
        'forced_routing', forced_routing, f'one of {forced.KINDS}'
      )
    if shared is not None:
      experts_lib.check_stateless('shared', shared)
    self.router: Any = router
    self.experts, self.shared = experts, shared
    self.group_size, self.implementation = group_size, implementation
    self.exchange_chunks, self.check_vma = exchange_chunks, check_vma
    self.buffer_factor, self.forced_routing = buffer_factor, forced_routing

  def __call__(
    self,
    x: Float[Array, '*b m d'],
    mask: Bool[Array, '*b m'] | None = None,
    *,
    key: PRNGKeyArray | None = None,
    token_ids: Int[Array, '*b m'] | None = None,
    segments: Int[Array, '*b m'] | None = None,
    cache: pieces.Cache | None = None,
    **options: Any,
  ) -> tuple[Float[Array, '*b m d_out'], dict[str, Any]]:
    """Returns the layer's output and `aux`.

    Args:
      x: tokens; the leading axes hold the examples.
      mask: False, or 0, where a token is padding: it reaches no expert and gets
        zero.
      key: for noise in routing and experts; None at evaluation.
      token_ids: for a router whose call takes them; others never see them.
      segments: documents by number, which a router that hands outputs on keeps
        apart; None: one. Others have no use for them.
      cache: of the tokens before x, from `init_cache` or the last call, with as
        many examples; None: there are none.
      **options: passed on to the router, such as `threshold`.

    Returns:
      y: as x, with the experts' output width.
      aux: {'losses', 'metrics', 'weights'}, each {name: scalar}, and 'cache',
        for the tokens after x, if one was given. Losses are to be added to the
        training loss as they are. They and the router's metrics are means over
        the groups that hold a token; so are those of a dense router,
        `dispatch_max` and `combine_max`, the largest weight in a slot and in a
        token, and of a sparse one `used_experts`, the part of the experts that
        keep a token of the group, and `rounds` of the buffer of dropless
        experts that have one. The other metrics are per token:
        `executed`, the experts that run, and `flops`, what they compute; of a
        sparse router also those `wanted` and `granted`. No padding is in any of
        these, but slots and buffers run whether padding fills them or not:
        `executed` and `flops` are all that ran, for each token that is not
        padding.
        The loss `steer_NAME` of a `routing.Steered` parameter has the value 0,
        and the statistic of its rule as the gradient; see `optim.steered`.
        Weights, without gradient, are for the mean over several calls, as in
        accumulation: for each of the others the number of groups or tokens that
        it is a mean over. A statistic by sum has none: those of all calls add
        up as they are.

    Raises:
      ValueError: the examples do not fill the groups, or the router's, or what
        is given for each token does not fit x, or dropless experts take `key`,
        or there is a cache that the router has no use for.
    """
    tokens = self._tokens(x, mask, token_ids, key, segments, cache)
    apply = functools.partial(
      local.apply,
      **self._grouping(tokens),
      implementation=self.implementation,
      exchange_chunks=self.exchange_chunks,
      buffer_factor=self.buffer_factor,
      forced_routing=self.forced_routing,
    )
    experts = jax.tree.map(sharding.by_expert, self.experts)
    (y, grown), aux = self._run(apply, tokens, options, experts, self.shared)
    steer = totals.steering(self.router, aux.pop('steer'))
    aux['losses'] |= steer
    if cache is not None:
      aux['cache'] = jax.tree.map(sharding.place_like, grown, cache)
    return sharding.unflatten(y, x), aux

  def route(
    self,
    x: Float[Array, '*b m d'],
    mask: Bool[Array, '*b m'] | None = None,
    *,
    key: PRNGKeyArray | None = None,
    token_ids: Int[Array, '*b m'] | None = None,
    segments: Int[Array, '*b m'] | None = None,
    **options: Any,
  ) -> routing.Slots | routing.Assignment:
    """Returns where tokens would go, and runs no expert.

    Args:
      x: tokens; the leading axes hold the examples.
      mask: False where a token is padding.
      key: for routing noise; None at evaluation.
      token_ids: for a router whose call takes them; others never see them.
      segments: documents by number; see the call.
      **options: passed on to the router, such as `threshold`.

    Returns:
      The routing of each token, its arrays with leading axes, and split, as x.
      Slots are those of the token's group, but where outputs are handed on: a
      token's `combine` is then for the slots of the piece before. An assignment
      has `granted`, the pairs that experts keep. Its `capacity` is that of a
      group.

    Raises:
      ValueError: the examples do not fill the groups, or the router's, or what
        is given for each token does not fit x.
    """
    tokens = self._tokens(x, mask, token_ids, key, segments, None)
    route = functools.partial(local.route, **self._grouping(tokens))
    routed, _ = self._run(route, tokens, options)
    return jax.tree.map(lambda v: sharding.unflatten(v, x), routed)

  def init_cache(
    self, batch: int, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> pieces.Cache | None:
    """Returns a cache for examples that have no tokens yet.

    It is split as a batch is that fills the mesh, and whole where this one does
    not; the layer returns it split as it got it.

    Args:
      batch: number of examples.
      dtype: of the tokens.

    Returns:
      None where the router needs none: no token's output depends on others, or
      on others at its position alone.
    """
    size = _piece(self.router)
    if size is None:
      return None
    e, s = self.router.num_experts, self.router.slots_per_expert
    tokens = jax.ShapeDtypeStruct((batch, size, self.router.width), dtype)
    slots = jax.ShapeDtypeStruct((e, batch, s, self.router.width), dtype)
    # Of any place: a mesh splits the experts, and nothing that they work on.
    bare = lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype)
    experts = jax.tree.map(bare, self.experts)
    outputs = jax.eval_shape(lambda f, x: f(x), experts, slots)
    return pieces.init_cache(tokens, outputs)

  def _tokens(self, x, mask, token_ids, key, segments, cache) -> local.Tokens:
    flat_x = sharding.flatten(x, 2)
    flat = functools.partial(_flatten, x)
    if not routing.takes_token_ids(self.router):
      token_ids = None
    mask = None if mask is None else jnp.asarray(mask, bool)
    tokens = local.Tokens(
      flat_x,
      flat('mask', mask, bool),
      flat('token_ids', token_ids, np.integer),
      None if key is None else jax.random.split(_typed(key), len(flat_x)),
    )
    if cache is not None and not _piece(self.router):
      raise UserError('cache', 'one', 'None, since the router needs none')
    if cache is not None and len(cache.length) != len(flat_x):
      expected = f'{len(flat_x)}, as many as x has'
      raise UserError('cache', f'{len(cache.length)} examples', expected)
    if _piece(self.router):
      segments = flat('segments', segments, np.integer)
      return tokens._replace(segments=segments, cache=cache)
    return tokens

  def _grouping(self, tokens: local.Tokens) -> dict[str, Any]:
    """Returns which tokens are routed together; see `local.apply`."""
    num_examples = len(tokens.x)
    across = getattr(self.router, 'across_examples', False)
    size = self.router.group_size if across else self.group_size
    if across:
      size = min(size, num_examples)  # the router fills the group up
    parts = size * part.count(tokens.x)
    if num_examples % parts:
      raise UserError(
        'x',
        f'{num_examples} examples',
        f'a multiple of {parts}, the group size times the devices that they are'
        ' split over',
      )
    return dict(size=size, across=across, piece=_piece(self.router))

  def _run(self, apply, tokens, options, *modules) -> Any:
    """Returns what `apply` does on all devices."""
    static = {k: v for k, v in options.items() if not _is_array(v)}
    arrays = {k: v for k, v in options.items() if _is_array(v)}
    stacked = [getattr(m, 'stacked', m) for m in modules]
    dtypes = [getattr(m, 'dtype', None) for m in stacked]
    return part.run(
      functools.partial(apply, static),
      (arrays, self.router, *modules),
      (None, None, *dtypes),
      tokens,
      self.check_vma,
    )


class SoftMoE(MoE):
  """A Soft MoE layer.

  Puigcerver et al., 2023, https://arxiv.org/abs/2308.00951, Algorithm 1:
  every slot is a mean of the tokens, experts work on their slots, every token
  is a mean of what came out. Nothing is dropped and all is differentiable.

      layer = SoftMoE(384, num_experts=128, rngs=nnx.Rngs(0))
      y, aux = layer(x)  # x and y: (..., tokens, 384)

  Slots travel to their experts and back by one all-to-all each way.
  """

  def __init__(
    self,
    width: int,
    *,
    num_experts: int,
    slots_per_expert: int = 1,
    scale_init: float = 1.0,
    mlp_dim: int = 0,
    expert: Callable[[nnx.Rngs], Any] | None = None,
    expert_init: str = 'independent',
    dtype: jax.typing.DTypeLike | None = None,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the router and the experts.

    Args:
      width: of a token.
      num_experts: number of experts.
      slots_per_expert: slots of each expert; the paper finds 1 best.
      scale_init: start of the logits' scale, 1 in the paper; not 0.
      mlp_dim: hidden width of the default expert, an MLP; 0 is 4 x width.
      expert: makes an expert from its `nnx.Rngs`, instead of the default.
      expert_init: 'independent' or 'identical' starting parameters.
      dtype: of the experts' computation; None: as the tokens and parameters.
        The router computes in float32.
      param_dtype: of the parameters.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an argument is out of its range, or see `Experts`.
    """
    options = dict(param_dtype=param_dtype)
    make_mlp = lambda rngs: mlp.Mlp(
      width, mlp_dim or 4 * width, dtype=dtype, rngs=rngs, **options
    )
    router = soft.SoftRouter(
      width,
      num_experts,
      slots_per_expert,
      scale_init=scale_init,
      rngs=rngs,
      **options,
    )
    experts = experts_lib.Experts(
      expert or make_mlp, num_experts, init=expert_init, rngs=rngs
    )
    super().__init__(router, experts)


def _piece(router: routing.Router) -> int | None:
  """Returns the tokens of a piece; None: the router takes examples whole."""
  return getattr(router, 'segment', None)


def _flatten(x: jax.Array, name: str, v: Any, kind: Any) -> jax.Array | None:
  """Returns what each token of x has of v, examples along one axis.

  Raises:
    UserError: there is not one of this kind for each token.
  """
  if v is None:
    return None
  if v.shape != x.shape[:-1] or not jnp.issubdtype(v.dtype, kind):
    expected = f'{kind.__name__} {x.shape[:-1]}, one for each token of x'
    raise UserError(name, f'{v.dtype} {v.shape}', expected)
  return sharding.flatten(v, 1)


def _typed(key: jax.Array) -> PRNGKeyArray:
  """Returns a key of `jax.random.key`, also for one of `jax.random.PRNGKey`."""
  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  return key if typed else jax.random.wrap_key_data(key)


def _is_array(value: Any) -> bool:
  return isinstance(value, (jax.Array, np.ndarray))
