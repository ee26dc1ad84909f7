"""Mixture of Tokens: soft routing that no later token can reach.

Antoniak et al., 2023, "Mixture of Tokens: Continuous MoE through Cross-Example
Aggregation", https://arxiv.org/abs/2310.15961.

Axes: `m` tokens of a group, `d` width, `e` experts, `s` slots of one expert.
"""

import math

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating


class MixtureOfTokens(nnx.Module):
  """Gives every expert one mixture of the tokens of its group.

  A group holds one token of each of `group_size` examples, all at the same
  position. An expert weighs them by a softmax over the group, processes the
  weighted sum and hands its output back with the same weights.

  A group always has `group_size` places. Where it has fewer tokens, or some are
  padding, the rest hold the zero vector: it takes part in the softmax with the
  logit 0 and receives nothing. So a token alone has the weight
  exp(l / T) / (exp(l / T) + group_size - 1).

  What is exact and what is not:
    - A token's output never depends on a later position. Exact.
    - A token alone in its group (a batch of one) depends on nothing but
      itself, at any temperature. Exact.
    - In a full group the other examples change a token's output, so that
      decoding one example alone is not what a full group computes. As the
      temperature goes to 0 the two agree at an expert where the token's logit
      is above 0 and above all others (weight 1 in both), or below 0 and below
      another (weight 0 in both). They do not where it is above 0 and below
      another (1 alone, 0 in the group), or below 0 and yet the largest (0
      alone, 1 in the group). Tuning at a falling temperature teaches the model
      to live with one token an expert; it does not make the two the same.

  Attributes:
    kernel: (d, e), LeCun normal.
  """

  # The layer makes groups across examples rather than along positions.
  across_examples = True
  causal = True

  def __init__(
    self,
    width: int,
    num_experts: int,
    *,
    group_size: int = 32,
    temperature: float = 1.0,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the router.

    Args:
      width: of the tokens.
      num_experts: experts, with one slot each.
      group_size: examples that a group mixes.
      temperature: divides the logits.
      param_dtype: of the kernel.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an argument is out of its range.
    """
    gating.check_sizes(width, num_experts)
    gating.require(group_size >= 1, 'group_size', group_size, 'at least 1')
    _check_temperature(temperature)
    self.num_experts = num_experts
    self.group_size = group_size
    self.temperature = temperature
    self.kernel = gating.kernel(
      width, num_experts, param_dtype=param_dtype, rngs=rngs
    )

  def __call__(
    self,
    x: Float[Array, 'm d'],
    *,
    mask: Bool[Array, ' m'] | None = None,
    key: PRNGKeyArray | None = None,
    temperature: float | Float[Array, ''] | None = None,
  ) -> tuple[routing.Slots, routing.Aux]:
    """Weighs the tokens of one group for every expert.

    Args:
      x: tokens of different examples at one position, `group_size` at most.
      mask: False where a token is padding.
      key: not used: there is no noise.
      temperature: in place of the router's own; may be traced, and may be 0,
        which gives each expert the one token of the largest logit.

    Returns:
      The slots, whose dispatch and combine weights are the same; no loss.

    Raises:
      ValueError: more tokens than the group has places, or a temperature below
        0 (a traced one is not looked at).
    """
    del key
    if temperature is None:
      temperature = self.temperature
    _check_temperature(temperature)
    weights = softmax_over_tokens(self._places(x, mask), temperature)
    weights = weights[: x.shape[0]]
    if mask is not None:
      weights = jnp.where(mask[:, None], weights, 0)
    weights = weights[:, :, None]
    return routing.Slots(dispatch=weights, combine=weights), routing.Aux()

  def _places(
    self, x: Float[Array, 'm d'], mask: Bool[Array, ' m'] | None
  ) -> Float[Array, 'places e']:
    """Returns the logits of all places of the group."""
    empty = self.group_size - x.shape[0]
    allowed = f'{self.group_size} at most, the group_size'
    gating.require(empty >= 0, 'x', f'{x.shape[0]} tokens', allowed)
    logits = gating.logits(x, self.kernel[...])
    if mask is not None:
      logits = jnp.where(mask[:, None], logits, 0)
    return jnp.pad(logits, ((0, empty), (0, 0)))


def softmax_over_tokens(
  logits: Float[Array, 'm e'], temperature: float | Float[Array, '']
) -> Float[Array, 'm e']:
  """Returns the softmax over `m` of logits / temperature.

  At the temperature 0 it is the limit: 1 for the largest logit, the first one
  among equals, and no gradient.
  """
  positive = jnp.asarray(temperature) > 0
  # Shifted before the division, which then cannot overflow to inf - inf.
  shifted = logits - jax.lax.stop_gradient(jnp.max(logits, 0, keepdims=True))
  soft = jax.nn.softmax(shifted / jnp.where(positive, temperature, 1), axis=0)
  hard = jax.nn.one_hot(jnp.argmax(logits, axis=0), logits.shape[0], axis=0)
  return jnp.where(positive, soft, hard)


def _check_temperature(temperature: float | Array):
  if isinstance(temperature, int | float):
    finite = 0 <= temperature < math.inf
    gating.require(finite, 'temperature', temperature, 'at least 0')
