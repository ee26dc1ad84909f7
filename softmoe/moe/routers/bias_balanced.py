"""Top-k routing balanced by a bias on the choice instead of a loss.

Wang et al., 2024, "Auxiliary-Loss-Free Load Balancing Strategy for
Mixture-of-Experts", https://arxiv.org/abs/2408.15664; with the sigmoid scores
and normalised gates of DeepSeek-V3, https://arxiv.org/abs/2412.19437.

Axes: `m` tokens of a group, `d` width, `e` experts, `k` choices of a token.
"""

import math

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating, quantile

BALANCE_BY = ('sign', 'quantile')
RATE = 1e-3  # of the paper


class BiasBalanced(nnx.Module):
  """Takes the k experts of the largest biased score, gated by the score.

  With s = sigmoid(x W), a token chooses the k largest of s + bias, and its
  gates are scale * s / sum of the chosen s: the bias decides who is chosen and
  nothing else. By 'sign', after each step the bias of an expert with more than
  the mean load falls by `rate`, that of one with less rises by `rate`. By
  'quantile' it is solved for, see `quantile`.

  Attributes:
    kernel: (d, e), LeCun normal.
    bias: (e,), float32, starts at 0, of 'sign'; no gradient reaches it,
      `Aux.steer` does.
    candidates: (e, c), float32, of 'quantile', likewise: the bias is in their
      middle and starts at 0.
  """

  def __init__(
    self,
    width: int,
    num_experts: int,
    *,
    k: int,
    balance_by: str = 'sign',
    rate: float | None = None,
    scale: float = 1.0,
    capacity_factor: float | None = None,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the router.

    Args:
      width: of the tokens.
      num_experts: how many to choose from.
      k: experts of a token.
      balance_by: what moves the bias, one of BALANCE_BY.
      rate: u of the paper, how far a step moves the bias by 'sign'; None: RATE.
      scale: what a token's gates sum to.
      capacity_factor: tokens that an expert keeps, as a multiple of
        k * tokens / experts; None, as in the papers: all that chose it.
      param_dtype: of the kernel.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an argument is out of its range.
    """
    gating.check_sizes(width, num_experts)
    allowed = f'1 to {num_experts}, the number of experts'
    gating.require(1 <= k <= num_experts, 'k', k, allowed)
    allowed = f'one of {BALANCE_BY}'
    gating.require(balance_by in BALANCE_BY, 'balance_by', balance_by, allowed)
    if balance_by == 'quantile':
      gating.require(rate is None, 'rate', rate, "None for 'quantile'")
    rate = RATE if rate is None else rate
    gating.require(0 <= rate < math.inf, 'rate', rate, 'at least 0')
    gating.require(0 < scale < math.inf, 'scale', scale, 'above 0')
    if capacity_factor is not None:
      gating.check_capacity_factor('capacity_factor', capacity_factor)
    self.num_experts = num_experts
    self.k = k
    self.balance_by = balance_by
    self.scale = scale
    self.capacity_factor = capacity_factor
    self.kernel = gating.kernel(
      width, num_experts, param_dtype=param_dtype, rngs=rngs
    )
    zeros = jnp.zeros(num_experts, jnp.float32)
    if balance_by == 'sign':
      self.bias = routing.Steered(zeros, rule=routing.StepBySign(rate))
    else:
      rule = quantile.ToQuantile(k / num_experts)
      self.candidates = routing.Steered(quantile.around(zeros), rule=rule)

  @property
  def causal(self) -> bool:
    """Whether no token's output depends on a later token."""
    return self.capacity_factor is None

  def __call__(
    self,
    x: Float[Array, 'm d'],
    *,
    mask: Bool[Array, ' m'] | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[routing.Assignment, routing.Aux]:
    """Routes one group of tokens.

    Args:
      x: tokens.
      mask: False where a token is padding.
      key: not used: there is no noise.

    Returns:
      The assignment, where under a capacity the higher score goes first; no
      loss; steer 'bias', the tokens that chose an expert less their mean over
      the experts, times e, or 'candidates', see `quantile.choosers`; the metric
      'receive_max', the largest share.
    """
    del key
    logits = gating.logits(x, self.kernel[...])
    scores = jax.nn.sigmoid(jax.lax.stop_gradient(logits))
    bias = jax.lax.stop_gradient(self._bias())
    _, chosen = jax.lax.top_k(scores + bias[None], self.k)
    experts = jnp.arange(self.num_experts)[None, None]
    chosen = jnp.any(chosen[:, :, None] == experts, axis=1)
    # Divided as logarithms, in which scores that underflow keep their ratio.
    logs = jnp.where(chosen, jax.nn.log_sigmoid(logits), -jnp.inf)
    if mask is not None:
      chosen &= mask[:, None]
    assignment = routing.Assignment(
      gates=self.scale * jax.nn.softmax(logs),
      priority=jnp.where(chosen, scores, -jnp.inf),
      capacity=gating.capacity(
        x.shape[0], self.num_experts, self.capacity_factor, choices=self.k
      ),
      choices=self.k,
    )
    load = routing.mean_over_tokens(chosen.astype(jnp.float32), mask)
    return assignment, routing.Aux(
      metrics={'receive_max': jnp.max(load)},
      steer=self._steer(scores, chosen, mask),
    )

  def _bias(self) -> Float[Array, ' e']:
    if self.balance_by == 'sign':
      return self.bias[...]
    return quantile.bias(self.candidates[...])

  def _steer(
    self,
    scores: Float[Array, 'm e'],
    chosen: Bool[Array, 'm e'],
    mask: Bool[Array, ' m'] | None,
  ) -> dict[str, Array]:
    if self.balance_by == 'quantile':
      candidates = jax.lax.stop_gradient(self.candidates[...])
      counts = quantile.choosers(scores, candidates, self.k, mask)
      return {'candidates': counts}
    # A whole number, so that a balanced load is an error of exactly 0, in a
    # group and in the sum of all groups, whatever the order they are added in.
    counts = jnp.sum(chosen, axis=0)
    excess = self.num_experts * counts - jnp.sum(counts)
    return {'bias': excess.astype(jnp.float32)}
