"""Expert Threshold: an expert takes what scores above its running cutoff.

"Expert Threshold Routing for Autoregressive Language Modeling with Dynamic
Computation Allocation and Load Balancing", 2026,
https://arxiv.org/abs/2603.11535; details that the abstract leaves open are as
in the authors' code.

Axes: `m` tokens of a group, `d` width, `e` experts.
"""

import statistics

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating


class ExpertThreshold(nnx.Module):
  """Sends a token to every expert whose threshold its logit reaches.

  The logits are x W, the gates sigmoid(x W). A batch's cutoff of an expert is
  the logit at which it would take its share k / e of the tokens, as Experts
  Choice does; the threshold is the running mean of the cutoffs of past batches,
  in training too. So there is no loss, and no token's experts depend on another
  token. An expert whose threshold is too high takes nothing and has no
  gradient, but the cutoffs of the batches bring the threshold down to it.

  The running mean starts at 0 and is divided by the sum of its weights: after
  the first batch the threshold is the cutoff of that batch. Before, it is that
  of standard normal logits, which tokens of variance 1 have at the start.

  Cutoffs are means over groups, where the authors' are means over devices and
  micro-batches; the code's warm-up with Experts Choice, and its bounds on the
  tokens of an expert, are not here.

  Attributes:
    kernel: (d, e), LeCun normal.
    cutoff: (e,), float32, the running mean of the cutoffs, starts at 0; no
      gradient reaches it or `weight`, `Aux.steer` does.
    weight: float32, the running mean of 1, starts at 0.
  """

  causal = True

  def __init__(
    self,
    width: int,
    num_experts: int,
    *,
    k: int | float,
    decay: float = 0.99,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the router.

    Args:
      width: of the tokens.
      num_experts: how many to choose from.
      k: mean number of experts of a token.
      decay: of the running mean in one step; 0: the last batch's cutoff.
      param_dtype: of the kernel.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an argument is out of its range.
    """
    gating.check_sizes(width, num_experts)
    allowed = f'above 0, at most {num_experts}, the number of experts'
    gating.require(0 < k <= num_experts, 'k', k, allowed)
    gating.require(0 <= decay < 1, 'decay', decay, 'at least 0, below 1')
    self.num_experts = num_experts
    self.k = k
    self.kernel = gating.kernel(
      width, num_experts, param_dtype=param_dtype, rngs=rngs
    )
    rule = routing.MoveAverage(decay)
    zeros = jnp.zeros(num_experts, jnp.float32)
    self.cutoff = routing.Steered(zeros, rule=rule)
    self.weight = routing.Steered(jnp.float32(0), rule=rule)

  @property
  def threshold(self) -> Float[Array, ' e']:
    """The logit from which on an expert takes a token."""
    share = self.k / self.num_experts
    normal = statistics.NormalDist()
    start = normal.inv_cdf(1 - share) if share < 1 else -jnp.inf
    cutoff, weight = self.cutoff[...], self.weight[...]
    started = weight > 0
    return jnp.where(started, cutoff / jnp.where(started, weight, 1), start)

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
      The assignment; no loss; steer 'cutoff', the group's, and 'weight', 1, or
      both 0 where all is padding; the metrics 'receive_max', the largest share
      of tokens that an expert takes, and 'unrouted', the share that none does.
    """
    del key
    logits = gating.logits(x, self.kernel[...])
    fixed = jax.lax.stop_gradient(logits)
    real = jnp.ones(x.shape[0], bool) if mask is None else mask
    taken = fixed >= jax.lax.stop_gradient(self.threshold)[None]
    taken &= real[:, None]
    assignment = routing.Assignment(
      gates=jax.nn.sigmoid(logits),
      priority=jnp.where(taken, fixed, -jnp.inf),
      expected=float(self.k),
    )
    return assignment, self._aux(fixed, taken, real)

  def _aux(
    self,
    logits: Float[Array, 'm e'],
    taken: Bool[Array, 'm e'],
    real: Bool[Array, ' m'],
  ) -> routing.Aux:
    share = lambda x: routing.mean_over_tokens(x.astype(jnp.float32), real)
    return routing.Aux(
      metrics={
        'receive_max': jnp.max(share(taken)),
        'unrouted': share(~jnp.any(taken, axis=1)),
      },
      steer={
        'cutoff': cutoff(logits, self.k / self.num_experts, real),
        'weight': jnp.any(real).astype(jnp.float32),
      },
    )


def cutoff(
  logits: Float[Array, 'm e'], share: float, real: Bool[Array, ' m']
) -> Float[Array, ' e']:
  """Returns the logit that a share of tokens like these n reaches.

  That is the one of rank (n + 1) * share from the top, between two ranks on the
  line through both, 0 without tokens. A further token like these then reaches
  it with a probability of `share`, however few they are; for many it is the
  paper's rank n * share.

  Args:
    logits: of every token and expert.
    share: above 0, at most 1.
    real: False where a token is padding.
  """
  n = jnp.sum(real)
  hidden = jnp.where(real[:, None], logits, jnp.finfo(logits.dtype).min)
  ranked = jnp.sort(hidden, axis=0, descending=True)
  rank = jnp.clip((n + 1) * share, 1, jnp.maximum(n, 1)) - 1
  above = jnp.floor(rank).astype(jnp.int32)
  below = jnp.minimum(above + 1, jnp.maximum(n, 1) - 1)
  between = ranked[above] + (rank - above) * (ranked[below] - ranked[above])
  return jnp.where(n > 0, between, 0)
