"""ReLU routing: a token's experts are those of a positive logit (ReMoE).

Wang et al., 2024, "ReMoE: Fully Differentiable Mixture-of-Experts with ReLU
Routing", https://arxiv.org/abs/2412.14711.

Axes: `m` tokens of a group, `d` width, `e` experts.
"""

import math

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating


class ReLURouter(nnx.Module):
  """Gates experts by ReLU(x W) and drives their mean number to k by an L1 loss.

  The loss is lambda * e * sum over experts of (mean gate) * f, where the load
  f = tokens of the expert / (k * tokens) is a constant. After each step lambda
  grows by `factor` where more than k experts a token were active, and shrinks
  by it where fewer were. The paper has one lambda and counts over all layers;
  here each router has its own, so each layer nears k by itself.

  An expert keeps every token with a positive gate.

  Attributes:
    kernel: (d, e), LeCun normal.
    log_coefficient: log(lambda), float32; no gradient reaches it, `Aux.steer`
      does.
  """

  causal = True

  def __init__(
    self,
    width: int,
    num_experts: int,
    *,
    k: int | float,
    coefficient: float = 1e-8,
    factor: float = 1.2,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the router.

    Args:
      width: of the tokens.
      num_experts: how many to choose from.
      k: mean number of active experts of a token to drive at.
      coefficient: lambda at the start.
      factor: of lambda in one step.
      param_dtype: of the kernel.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an argument is out of its range.
    """
    gating.check_sizes(width, num_experts)
    allowed = f'above 0, at most {num_experts}, the number of experts'
    gating.require(0 < k <= num_experts, 'k', k, allowed)
    positive = 0 < coefficient < math.inf
    gating.require(positive, 'coefficient', coefficient, 'above 0')
    gating.require(1 <= factor < math.inf, 'factor', factor, 'at least 1')
    self.num_experts = num_experts
    self.k = k
    self.kernel = gating.kernel(
      width, num_experts, param_dtype=param_dtype, rngs=rngs
    )
    self.log_coefficient = routing.Steered(
      jnp.float32(math.log(coefficient)),
      rule=routing.StepBySign(math.log(factor)),
    )

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
      The assignment; the loss 'sparsity'; steer 'log_coefficient', k less the
      active experts, summed over the tokens; the metrics 'coefficient' (lambda)
      and 'receive_max', the largest share of tokens at which an expert is
      active.
    """
    del key
    gates = jax.nn.relu(gating.logits(x, self.kernel[...]))
    active = gates > 0
    if mask is not None:
      active &= mask[:, None]
    fixed = jax.lax.stop_gradient(gates)
    assignment = routing.Assignment(
      gates=gates,
      priority=jnp.where(active, fixed, -jnp.inf),
      expected=float(self.k),
    )
    return assignment, self._aux(gates, active, mask)

  def _aux(
    self,
    gates: Float[Array, 'm e'],
    active: Bool[Array, 'm e'],
    mask: Bool[Array, ' m'] | None,
  ) -> routing.Aux:
    coefficient = jnp.exp(jax.lax.stop_gradient(self.log_coefficient[...]))
    load = routing.mean_over_tokens(active.astype(jnp.float32), mask)
    mean_gates = routing.mean_over_tokens(gates, mask)
    loss = self.num_experts * jnp.sum(mean_gates * load) / self.k
    # A whole number where k is one: no rounding, in the sum of all groups too.
    real = active.shape[0] if mask is None else jnp.sum(mask)
    error = self.k * real - jnp.sum(active)
    return routing.Aux(
      losses={'sparsity': coefficient * loss},
      metrics={'coefficient': coefficient, 'receive_max': jnp.max(load)},
      steer={'log_coefficient': jnp.asarray(error, jnp.float32)},
    )
