"""The MoE layer: a router, experts, and the way between them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe.moe import dispatch, experts, mlp, soft


class SoftMoE(nnx.Module):
  """A Soft MoE layer, in place of the MLP of a transformer block.

  Puigcerver et al., 2023, https://arxiv.org/abs/2308.00951, Algorithm 1:
  every slot is a mean of the tokens, experts work on their slots, every token
  is a mean of what came out. Nothing is dropped and all is differentiable.

      layer = SoftMoE(384, num_experts=128, rngs=nnx.Rngs(0))
      y, aux = layer(x)  # x and y: (..., tokens, 384)

  It needs no mesh. Under one with an explicit axis `expert`, experts are split
  over it and slots travel to them and back by one all-to-all each way.
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
    for name, value in (
      ('width', width),
      ('num_experts', num_experts),
      ('slots_per_expert', slots_per_expert),
    ):
      if value < 1:
        raise ValueError(f'{name}: got {value}; at least 1')
    if expert is None:
      expert = lambda rngs: mlp.Mlp(
        width,
        mlp_dim or 4 * width,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
      )
    self.width = width
    self.router = soft.SoftRouter(
      width, num_experts, slots_per_expert, param_dtype=param_dtype, rngs=rngs
    )
    self.experts = experts.Experts(
      expert, num_experts, init=expert_init, rngs=rngs
    )

  def __call__(
    self,
    x: Float[Array, '*b m d'],
    mask: Bool[Array, '*b m'] | None = None,
  ) -> tuple[Float[Array, '*b m d_out'], dict[str, Any]]:
    """Returns the layer's output and `aux`.

    Args:
      x: tokens; a slot mixes the m tokens of one leading index.
      mask: False where a token is padding: it enters no slot and gets zero.

    Returns:
      y: as x, with the experts' output width.
      aux: {'losses': {}, 'metrics': {name: scalar}}; soft routing needs no
        balancing loss. The metrics are the largest dispatch weight of a slot
        and the largest combine weight of a token, averaged.

    Raises:
      ValueError: the tokens are not of the layer's width.
    """
    if x.shape[-1] != self.width:
      raise ValueError(f'x: got width {x.shape[-1]}; {self.width}')
    if mask is not None:
      x = jnp.where(mask[..., None], x, 0)  # NaN in padding must not spread
    to_slots, to_tokens = self.router(x, mask)
    y = self.experts(dispatch.dispatch(x, to_slots))
    y = dispatch.combine(y, to_tokens)
    if mask is not None:
      y = jnp.where(mask[..., None], y, 0)
    metrics = {
      'dispatch_max': jnp.mean(jnp.max(to_slots, axis=-3)),
      'combine_max': jnp.mean(jnp.max(to_tokens, axis=(-2, -1))),
    }
    return y, {'losses': {}, 'metrics': metrics}
