"""The MoE layer: a router, experts, and the way between them.

Axes: `*b` any leading axes, `b` examples, `m` tokens, `d` width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe import experts as experts_lib
from softmoe.moe import groups, mlp, routing
from softmoe.moe.execution import run as execution
from softmoe.moe.routers import soft

P = jax.P


class MoE(nnx.Module):
  """A mixture of experts, in place of the MLP of a transformer block.

      layer = MoE(
        TokensChoice(384, 8, k=2, rngs=rngs),
        Experts(lambda rngs: Mlp(384, 1536, rngs=rngs), 8, rngs=rngs),
      )
      y, aux = layer(x, mask=mask, key=key)  # x and y: (..., tokens, 384)

  It needs no mesh. Under one with explicit axes every device routes its own
  examples, experts are split over the axis `expert`, and what they work on
  travels to them and back.
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
  ):
    """Puts a router and experts together.

    Args:
      router: says which tokens reach which experts; see `routing.Router`.
      experts: as many as the router knows.
      shared: a module applied to every token beside what is routed, as in
        DeepSeekMoE (https://arxiv.org/abs/2401.06066); None: none.
      group_size: neighbouring examples whose tokens are routed together. A
        router with `across_examples` routes the tokens at one position of
        `router.group_size` examples together instead.
      implementation: of dropless experts: 'fused', 'grouped', or 'auto', which
        `execution.choose` decides.
      exchange_chunks: parts in which slots travel to their experts and back,
        so that one may travel while experts work on another.

    Raises:
      ValueError: a size does not fit, or a name is unknown.
    """
    known = execution.IMPLEMENTATIONS
    if implementation not in known:
      raise UserError('implementation', implementation, f'one of {known}')
    if implementation == 'grouped' and not hasattr(experts.stacked, 'grouped'):
      expected = "'fused' or 'auto', since the experts have no `grouped`"
      raise UserError('implementation', implementation, expected)
    num_experts = jax.tree.leaves(experts.stacked)[0].shape[0]
    if router.num_experts != num_experts:
      expected = f'{router.num_experts}, as many as the router knows'
      raise UserError('experts', num_experts, expected)
    if group_size < 1:
      raise UserError('group_size', group_size, 'at least 1')
    if exchange_chunks < 1:
      raise UserError('exchange_chunks', exchange_chunks, 'at least 1')
    self.router: Any = router
    self.experts, self.shared = experts, shared
    self.group_size, self.implementation = group_size, implementation
    self.exchange_chunks = exchange_chunks

  def __call__(
    self,
    x: Float[Array, '*b m d'],
    mask: Bool[Array, '*b m'] | None = None,
    *,
    key: PRNGKeyArray | None = None,
    token_ids: Int[Array, '*b m'] | None = None,
    **options: Any,
  ) -> tuple[Float[Array, '*b m d_out'], dict[str, Any]]:
    """Returns the layer's output and `aux`.

    Args:
      x: tokens; the leading axes hold the examples.
      mask: False where a token is padding: it reaches no expert and gets zero.
      key: for routing noise; None at evaluation.
      token_ids: for a router that looks at the vocabulary.
      **options: passed on to the router, such as `threshold`.

    Returns:
      y: as x, with the experts' output width.
      aux: {'losses': {name: scalar}, 'metrics': {name: scalar}}. Losses are to
        be added to the training loss as they are. They and the router's
        metrics are means over the groups that hold a token; so are those of a
        dense router, `dispatch_max` and `combine_max`, the largest weight in a
        slot and in a token. The other metrics are per token: `executed`, the
        experts that run, and `flops`, what they compute; of a sparse router
        also those `wanted` and `granted`. No padding is in any of these, but
        slots and buffers run whether padding fills them or not: `executed` and
        `flops` are all that ran, for each token that is not padding.

    Raises:
      ValueError: the examples do not fill the groups, or the router's.
    """
    tokens = self._tokens(x, mask, token_ids, key)
    size, across = self._grouping(len(tokens.x))
    static = {k: v for k, v in options.items() if not _is_array(v)}
    arrays = {k: v for k, v in options.items() if _is_array(v)}
    apply = functools.partial(
      _apply,
      static,
      size=size,
      across=across,
      implementation=self.implementation,
      exchange_chunks=self.exchange_chunks,
    )
    apply = _on_mesh(apply) if sharding.is_explicit('expert') else apply
    y, aux = apply(self.router, self.experts, self.shared, tokens, arrays)
    y = sharding.unflatten(y, x)
    losses = aux.losses | _steering(self.router, aux.steer)
    return y, {'losses': losses, 'metrics': aux.metrics}

  def _tokens(self, x, mask, token_ids, key) -> 'Tokens':
    flat = lambda v, rank: None if v is None else sharding.flatten(v, rank)
    tokens = sharding.flatten(x, 2)
    keys = None if key is None else jax.random.split(key, len(tokens))
    return Tokens(tokens, flat(mask, 1), flat(token_ids, 1), keys)

  def _grouping(self, num_examples: int) -> tuple[int, bool]:
    """Returns the examples of a group and whether it goes across them."""
    across = getattr(self.router, 'across_examples', False)
    size = self.router.group_size if across else self.group_size
    if across:
      size = min(size, num_examples)  # the router fills the group up
    parts = size * sharding.num_devices()
    if num_examples % parts:
      raise UserError(
        'x',
        f'{num_examples} examples',
        f'a multiple of {parts}, the group size times the devices of the mesh',
      )
    return size, across


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
      mlp_dim: hidden width of the default expert, an MLP; 0 is 4 x width.
      expert: makes an expert from its `nnx.Rngs`, instead of the default.
      expert_init: 'independent' or 'identical' starting parameters.
      dtype: of the experts' computation; None: as the tokens and parameters.
        The router computes in float32.
      param_dtype: of the parameters.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a size is below 1, or see `Experts`.
    """
    options = dict(param_dtype=param_dtype)
    make_mlp = lambda rngs: mlp.Mlp(
      width, mlp_dim or 4 * width, dtype=dtype, rngs=rngs, **options
    )
    router = soft.SoftRouter(
      width, num_experts, slots_per_expert, rngs=rngs, **options
    )
    experts = experts_lib.Experts(
      expert or make_mlp, num_experts, init=expert_init, rngs=rngs
    )
    super().__init__(router, experts)


class Tokens(NamedTuple):
  """The tokens of a call, with all that belongs to each."""

  x: Any  # (b, m, d), or (g, t, d) once they are in groups
  mask: Any  # (b, m) or None
  ids: Any  # (b, m) or None
  keys: Any  # (b,) or None: of each example, whatever device it is on


def _on_mesh(apply: Callable) -> Callable:
  """Returns `apply` on every device with the examples that it holds."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = mesh.axis_names
  apply = functools.partial(
    apply, axes=axes, axis='expert' if mesh.shape['expert'] > 1 else None
  )

  def call(router, experts, shared, tokens, options):
    experts = jax.tree.map(sharding.by_expert, experts)
    weights = router, experts, shared, options
    specs = jax.tree.map(lambda w: jax.typeof(w).sharding.spec, weights)
    dtype_of = lambda module: getattr(module, 'dtype', None)
    dtypes = None, dtype_of(experts.stacked), dtype_of(shared), None

    def run(weights, tokens):
      *modules, options = map(sharding.local_weights, weights, specs, dtypes)
      return apply(*modules, tokens, options)

    place = lambda v: jax.reshard(v, P(axes))
    return jax.shard_map(
      run, in_specs=(specs, P(axes)), out_specs=(P(axes), P())
    )(weights, jax.tree.map(place, tokens))

  return call


def _is_array(value: Any) -> bool:
  return isinstance(value, (jax.Array, np.ndarray))


def _apply(
  static: dict[str, Any],
  router: routing.Router,
  experts: experts_lib.Experts,
  shared: Any,
  tokens: Tokens,
  arrays: dict[str, jax.Array],
  *,
  size: int,
  across: bool,
  implementation: str,
  exchange_chunks: int,
  axes: tuple[str, ...] = (),
  axis: str | None = None,
) -> tuple[Float[Array, 'b m d_out'], routing.Aux]:
  """Applies the layer to the examples of one device.

  Args:
    static: options for the router that are not arrays.
    router: of all experts.
    experts: those of this device.
    shared: module for every token, or None.
    tokens: of this device.
    arrays: options for the router.
    size: examples of a group.
    across: whether a group goes across examples.
    implementation: of dropless experts.
    exchange_chunks: of what travels.
    axes: of the mesh; empty: there is none.
    axis: that the experts are split over.
  """
  x, mask = tokens.x, tokens.mask
  if mask is not None:
    x = jnp.where(mask[..., None], x, 0)  # NaN in padding must not spread
  grouped = _group(tokens._replace(x=x), size, across)
  route = functools.partial(_route, router, static | arrays)
  routed, aux = jax.vmap(route)(grouped)
  result = execution.run(
    routed,
    grouped.x,
    experts,
    axis,
    implementation,
    exchange_chunks,
    grouped.mask,
  )
  y = groups.join(result.y, (x.shape[0], x.shape[1]), across)
  if shared is not None:
    y = y + shared(x)
  if mask is not None:
    y = jnp.where(mask[..., None], y, 0)
  real = grouped.mask
  if real is None:
    real = jnp.ones(grouped.x.shape[:2], bool)
  return y, _aux(aux, result, real, experts.flops(), axes)


def _group(tokens: Tokens, size: int, across: bool) -> Tokens:
  x, mask, ids, keys = tokens
  if keys is not None:
    keys = jnp.broadcast_to(keys[:, None], x.shape[:2])
  return Tokens(
    *(
      None if v is None else groups.split(v, size, across)
      for v in (x, mask, ids, keys)
    )
  )


def _route(
  router: routing.Router, options: dict[str, Any], group: Tokens
) -> tuple[Any, routing.Aux]:
  if group.ids is not None:
    options = options | {'token_ids': group.ids}
  # The noise of a group is that of its first example.
  key = None if group.keys is None else group.keys[0]
  return router(group.x, mask=group.mask, key=key, **options)


def _aux(
  aux: routing.Aux,
  result: execution.Result,
  real: Bool[Array, 'g t'],
  flops: int,
  axes: tuple[str, ...],
) -> routing.Aux:
  """Returns losses and metrics of all groups on all devices.

  Args:
    aux: of each group.
    result: of this device.
    real: False where a token is padding; groups of nothing else do not count.
    flops: of one expert on one row.
    axes: of the mesh; empty: there is none.
  """
  total = lambda v: jax.lax.psum(v, axes) if axes else v
  groups_with_tokens = jnp.any(real, axis=1)
  num_groups = jnp.maximum(total(jnp.sum(groups_with_tokens)), 1)
  num_tokens = jnp.maximum(total(jnp.sum(real)), 1)
  mean = lambda v: total(jnp.sum(groups_with_tokens * v)) / num_groups
  counts = {name: total(n) / num_tokens for name, n in result.counts.items()}
  counts['flops'] = counts['executed'] * flops
  return routing.Aux(
    losses=jax.tree.map(mean, aux.losses),
    metrics=jax.tree.map(mean, aux.metrics | result.means) | counts,
    steer=jax.tree.map(lambda v: total(jnp.sum(v, axis=0)), aux.steer),
  )


def _steering(router: Any, errors: dict[str, Array]) -> dict[str, Array]:
  """Returns a loss of value 0 whose gradient is the step of each parameter."""
  losses = {}
  for name, error in errors.items():
    step = router.steer_rates[name] * jnp.sign(jax.lax.stop_gradient(error))
    loss = jnp.sum(getattr(router, name)[...] * step)
    losses[f'steer_{name}'] = loss - jax.lax.stop_gradient(loss)
  return losses
