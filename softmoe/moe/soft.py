"""Soft routing: every slot is a weighted mean of all tokens.

Puigcerver et al., 2023, "From Sparse to Soft Mixtures of Experts",
https://arxiv.org/abs/2308.00951: Algorithm 1, with the parameterisation of
section 2.3 (Algorithm 2).

Axes: `*b` any leading axes, `m` tokens, `d` width, `e` experts, `s` slots of
one expert.
"""

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float


class SoftRouter(nnx.Module):
  """Gives dispatch and combine weights, two softmaxes of the same logits.

  The logit of a token and a slot is `scale` times the cosine between the token
  and the slot's parameters (section 2.3), so it does not grow with the width.
  The l2-normalised tokens serve the logits alone: what is mixed into the slots
  is the token as it came.

  Attributes:
    phi: (d, e, s), the parameters of the slots, LeCun normal.
    scale: scalar, starts at 1.
  """

  def __init__(
    self,
    width: int,
    num_experts: int,
    slots_per_expert: int,
    *,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    shape = (width, num_experts, slots_per_expert)
    init = nnx.initializers.lecun_normal()
    self.phi = nnx.Param(init(rngs.params(), shape, param_dtype))
    self.scale = nnx.Param(jnp.ones((), param_dtype))

  def logits(self, x: Float[Array, '*b m d']) -> Float[Array, '*b m e s']:
    """Returns float32 logits whatever the type of the tokens."""
    phi = self.scale[...] * l2_normalize(self.phi[...], axis=0)
    return jnp.einsum(
      '...md,des->...mes',
      l2_normalize(x, axis=-1),
      phi,
      preferred_element_type=jnp.float32,
    )

  def __call__(
    self,
    x: Float[Array, '*b m d'],
    mask: Bool[Array, '*b m'] | None = None,
  ) -> tuple[Float[Array, '*b m e s'], Float[Array, '*b m e s']]:
    """Returns the dispatch and the combine weights in float32.

    Args:
      x: tokens.
      mask: False where a token is padding; it then weighs nothing in any slot.

    Returns:
      dispatch: sums to 1 over the tokens, for each slot (0 where all tokens of
        an example are padding).
      combine: sums to 1 over all slots, for each token.
    """
    logits = self.logits(x)
    combine = jax.nn.softmax(logits, axis=(-2, -1))
    if mask is None:
      return jax.nn.softmax(logits, axis=-3), combine
    real = mask[..., None, None]
    masked = jnp.where(real, logits, jnp.finfo(jnp.float32).min)
    return jnp.where(real, jax.nn.softmax(masked, axis=-3), 0), combine


def l2_normalize(
  x: Float[Array, '*shape'], axis: int
) -> Float[Array, '*shape']:
  """Returns float32 `x` with unit l2 norm along `axis`.

  The paper adds 1e-6 to the norm; here, as in the authors' code, it is added
  to the square under the root, so that the gradient at zero is finite.
  """
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(square + 1e-6)
