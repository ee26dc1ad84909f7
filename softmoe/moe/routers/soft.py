"""Soft routing: every slot is a weighted mean of all tokens.

Puigcerver et al., 2023, "From Sparse to Soft Mixtures of Experts",
https://arxiv.org/abs/2308.00951: Algorithm 1, with the parameterisation of
section 2.3 (Algorithm 2).

Axes: `*b` any leading axes, `m` tokens, `d` width, `e` experts, `s` slots of
one expert.
"""

import math

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating

WEIGHTS = ('soft', 'uniform')
# The most weights of a group, each way, that are kept: more are made in tiles.
MOST_WEIGHTS = 2**24


class SoftRouter(nnx.Module):
  """Gives dispatch and combine weights, two softmaxes of the same logits.

  The logit of a token and a slot is `scale` times the cosine between the token
  and the slot's parameters (section 2.3), so it does not grow with the width.
  The l2-normalised tokens serve the logits alone: what is mixed into the slots
  is the token as it came.

  The paper's ablations (appendix A) replace either softmax by equal weights:
  `dispatch='uniform'` (Uniform / Soft), `combine='uniform'` (Soft / Uniform),
  or both (Uniform, which has no parameters).

  Attributes:
    phi: (d, e, s), the parameters of the slots, LeCun normal.
    scale: scalar, starts at `scale_init`.
  """

  causal = False

  def __init__(
    self,
    width: int,
    num_experts: int,
    slots_per_expert: int = 1,
    *,
    dispatch: str = 'soft',
    combine: str = 'soft',
    scale_init: float = 1.0,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the slots' parameters.

    Args:
      width: of the tokens.
      num_experts: experts.
      slots_per_expert: slots of each.
      dispatch: 'soft' or 'uniform'.
      combine: 'soft' or 'uniform'.
      scale_init: start of `scale`; the paper's 1 makes the logits cosines, and
        so all weights almost equal at first.
      param_dtype: of the parameters.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a size is below 1, a kind of weights is unknown, or
        `scale_init` is 0, not finite, or of no use.
    """
    gating.check_sizes(width, num_experts)
    gating.require(
      slots_per_expert >= 1, 'slots_per_expert', slots_per_expert, 'at least 1'
    )
    for name, kind in (('dispatch', dispatch), ('combine', combine)):
      gating.require(kind in WEIGHTS, name, kind, f'one of {WEIGHTS}')
    self.width, self.num_experts = width, num_experts
    self.slots_per_expert = slots_per_expert
    self.dispatch, self.combine = dispatch, combine
    learned = 'soft' in (dispatch, combine)
    valid = math.isfinite(scale_init) and scale_init != 0
    gating.require(valid, 'scale_init', scale_init, 'finite and not 0')
    expected = '1.0: uniform weights have no scale'
    gating.require(
      learned or scale_init == 1, 'scale_init', scale_init, expected
    )
    shape = (width, num_experts, slots_per_expert)
    init = nnx.initializers.lecun_normal()
    self.phi = (
      nnx.Param(init(rngs.params(), shape, param_dtype)) if learned else None
    )
    self.scale = (
      nnx.Param(jnp.full((), scale_init, param_dtype)) if learned else None
    )

  def logits(self, x: Float[Array, '*b m d']) -> Float[Array, '*b m e s']:
    """Returns float32 logits whatever the type of the tokens.

    Raises:
      ValueError: the tokens are not of the router's width.
    """
    gating.check_width(x, self.width)
    if self.phi is None or self.scale is None:
      shape = (*x.shape[:-1], self.num_experts, self.slots_per_expert)
      return jnp.zeros(shape, jnp.float32)
    tokens, slots, _ = self._factors(x, None)
    return jnp.einsum(
      '...md,des->...mes',
      tokens,
      slots,
      # By default TPUs and GPUs would round the operands to fewer bits.
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    )

  def __call__(
    self,
    x: Float[Array, '*b m d'],
    *,
    mask: Bool[Array, '*b m'] | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[routing.Slots, routing.Aux]:
    """Returns the dispatch and the combine weights in float32.

    Args:
      x: tokens.
      mask: False where a token is padding; it then weighs nothing in any slot.
      key: not used; the router has no noise.

    Returns:
      dispatch: sums to 1 over the tokens, for each slot (0 where all tokens of
        a group are padding).
      combine: sums to 1 over all slots, for each token.
    """
    logits = self.logits(x)
    shape = logits.shape
    # On a CPU XLA has no vectors for a softmax whose last axis is one slot.
    logits = logits.reshape(*shape[:-2], -1)
    equal = jnp.zeros_like(logits)  # equal logits give equal weights
    dispatch = logits if self.dispatch == 'soft' else equal
    combine = logits if self.combine == 'soft' else equal
    return routing.Slots(
      over_tokens(dispatch, mask).reshape(shape),
      jax.nn.softmax(combine).reshape(shape),
    ), routing.Aux()

  def factors(
    self,
    x: Float[Array, 'g m d'],
    *,
    mask: Bool[Array, 'g m'] | None = None,
  ) -> routing.Factors | None:
    """Returns what the weights are made of where there are too many to keep.

    Args:
      x: tokens of all groups.
      mask: False where a token is padding.

    Returns:
      None where a group has no more than MOST_WEIGHTS, and where they are not
      the softmaxes of the logits: in an ablation, or in a subclass with a call
      or logits of its own.

    Raises:
      ValueError: the tokens are not of the router's width.
    """
    gating.check_width(x, self.width)
    kind, num_slots = type(self), self.num_experts * self.slots_per_expert
    own = kind.__call__ is SoftRouter.__call__
    own = own and kind.logits is SoftRouter.logits
    many = x.shape[-2] * num_slots > MOST_WEIGHTS
    if own and many and self.dispatch == self.combine == 'soft':
      return self._factors(x, mask)
    return None

  def _factors(
    self, x: Float[Array, '*b m d'], mask: Bool[Array, '*b m'] | None
  ) -> routing.Factors:
    assert self.phi is not None and self.scale is not None
    phi = self.scale[...] * l2_normalize(self.phi[...], axis=0)
    return routing.Factors(l2_normalize(x, axis=-1), phi, mask)


class IdentityRouter(nnx.Module):
  """The paper's Identity ablation: token i goes to slot i and back.

  Where there are more tokens than slots they go round: a slot holds the mean of
  the tokens i, i + slots, ..., and each of them gets its output. Where there
  are fewer, slots stay empty.
  """

  causal = False

  def __init__(self, num_experts: int, slots_per_expert: int = 1):
    """Has no parameters.

    Raises:
      ValueError: a size is below 1.
    """
    for name, size in (
      ('num_experts', num_experts),
      ('slots_per_expert', slots_per_expert),
    ):
      gating.require(size >= 1, name, size, 'at least 1')
    self.num_experts, self.slots_per_expert = num_experts, slots_per_expert

  def __call__(
    self,
    x: Float[Array, 'm d'],
    *,
    mask: Bool[Array, ' m'] | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[routing.Slots, routing.Aux]:
    """Returns weights of 1 between a token and its slot; see `SoftRouter`."""
    e, s = self.num_experts, self.slots_per_expert
    slots = jnp.arange(x.shape[0]) % (e * s)
    combine = jax.nn.one_hot(slots, e * s).reshape(-1, e, s)
    held = combine if mask is None else combine * mask[:, None, None]
    dispatch = held / jnp.maximum(jnp.sum(held, axis=0, keepdims=True), 1)
    return routing.Slots(dispatch, combine), routing.Aux()


def over_tokens(
  logits: Float[Array, '*b m n'], mask: Bool[Array, '*b m'] | None
) -> Float[Array, '*b m n']:
  """Returns the softmax, for each of n slots, over the tokens but padding."""
  if mask is None:
    return jax.nn.softmax(logits, axis=-2)
  real = mask[..., None]
  masked = jnp.where(real, logits, jnp.finfo(jnp.float32).min)
  return jnp.where(real, jax.nn.softmax(masked, axis=-2), 0)


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
