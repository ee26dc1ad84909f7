"""Experts Choice: every expert takes the tokens it scores highest.

Zhou et al., 2022, "Mixture-of-Experts with Expert Choice Routing",
https://arxiv.org/abs/2202.09368.

Axes: `m` tokens of a group, `d` width, `e` experts.
"""

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating

SOFTMAX_OVER = ('experts', 'tokens')


class ExpertsChoice(nnx.Module):
  """Gives every expert its C = ceil(m c / E) tokens of the largest gate.

  A token may reach any number of experts, or none; the experts are evenly used
  by construction, so there is no loss. It is not causal: whether an expert
  takes a token depends on all tokens of the group.

  Attributes:
    kernel: (d, e), LeCun normal, no bias.
  """

  causal = False

  def __init__(
    self,
    width: int,
    num_experts: int,
    *,
    capacity_factor: float = 1.0,
    softmax_over: str = 'experts',
    noise_std: float = 0.0,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the router.

    Args:
      width: of a token.
      num_experts: E.
      capacity_factor: c, experts of a token on average.
      softmax_over: 'experts': the gates of a token sum to 1 (the paper, and
        V-MoE's code); 'tokens': those of an expert do, over the group (an
        option of the code of Mixture of Tokens and of the scaling laws for
        fine-grained MoE, https://github.com/llm-random/llm-random).
      noise_std: E times the standard deviation of the normal noise that the
        logits get in training, as in V-MoE's code.
      param_dtype: of the kernel.
      rngs: source of the kernel's key.

    Raises:
      ValueError: an argument is out of its range.
    """
    gating.check_sizes(width, num_experts)
    gating.check_capacity_factor('capacity_factor', capacity_factor)
    gating.require(
      softmax_over in SOFTMAX_OVER,
      'softmax_over',
      softmax_over,
      f'one of {SOFTMAX_OVER}',
    )
    gating.require(noise_std >= 0, 'noise_std', noise_std, 'at least 0')
    self.num_experts = num_experts
    self.capacity_factor = capacity_factor
    self.softmax_over = softmax_over
    self.noise_std = noise_std
    self.kernel = gating.kernel(
      width, num_experts, param_dtype=param_dtype, rngs=rngs
    )

  def __call__(
    self,
    x: Float[Array, 'm d'],
    *,
    mask: Bool[Array, ' m'] | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[routing.Assignment, routing.Aux]:
    """Routes one group of tokens; see `routing.Router`."""
    logits = gating.logits(x, self.kernel[...])
    logits = gating.noisy(logits, self.noise_std / self.num_experts, key)
    gates = self._gates(logits, mask)
    priority = jax.lax.stop_gradient(gates)
    if mask is not None:
      priority = jnp.where(mask[:, None], priority, -jnp.inf)
    capacity = gating.capacity(
      x.shape[0], self.num_experts, self.capacity_factor
    )
    return routing.Assignment(gates, priority, capacity), routing.Aux()

  def _gates(self, logits, mask):
    if self.softmax_over == 'experts':
      return jax.nn.softmax(logits, axis=1)
    if mask is None:
      return jax.nn.softmax(logits, axis=0)
    # Finite, so that a group of padding alone has no NaN in its gradient.
    hidden = jnp.where(mask[:, None], logits, jnp.finfo(logits.dtype).min)
    return jnp.where(mask[:, None], jax.nn.softmax(hidden, axis=0), 0)
