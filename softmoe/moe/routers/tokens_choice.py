"""Tokens Choice: every token takes the k experts of its largest gates.

Riquelme et al., 2021 (V-MoE), "Scaling Vision with Sparse Mixture of Experts",
https://arxiv.org/abs/2106.05974, and the routers that are settings of it.

Axes: `m` tokens of a group, `d` width, `e` experts, `n` experts and null
experts, `k` choices of a token.
"""

from collections.abc import Mapping
from typing import Literal

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating, losses

LOSSES = ('importance', 'load', 'switch', 'gshard', 'z')
Coefficients = tuple[tuple[str, float], ...]
V_MOE = (('importance', 0.005), ('load', 0.005))

# float32 counts without gaps up to here.
MAX_ORDER = 2**24


class TokensChoice(nnx.Module):
  """Top-k of softmax(x W + noise), with buffers of a fixed capacity.

  An expert keeps at most ceil(m k c / E) tokens: all first choices come before
  all second choices and so on, and within a choice earlier tokens first, or
  under `batch_priority` those with the larger first gate. The rest is dropped.

  Published routers are settings of it (c is the capacity factor):

  * V-MoE: the defaults, with c = 1.05 in training; batch prioritised routing is
    `batch_priority=True`.
  * Switch (https://arxiv.org/abs/2101.03961): k=1, noise_std=0,
    losses={'switch': 0.01}.
  * GShard top-2 (https://arxiv.org/abs/2006.16668): k=2, normalize=True,
    noise_std=0 and the loss 'gshard', or 'switch' for its code's scale. Its
    second choice is taken at random, in proportion to its gate; here always.
  * DeepSeekMoE (https://arxiv.org/abs/2401.06066): more and smaller experts and
    a larger k, noise_std=0, dropless (c = None). Shared experts are the
    layer's.
  * AdaMoE (https://arxiv.org/abs/2406.13233): `num_null` null experts, which
    return 0 and cost nothing, so that tokens differ in how many real ones they
    use; the gates of these are renormalised to sum to 1. As in the authors'
    code the balance losses then count all k choices of a token, each 1 / k,
    and give every null expert the mean count of all. E above includes them.

  In training the logits get normal noise. The losses 'importance' and 'z' are
  of the logits before it; 'load' is 0 where there is none.

  Attributes:
    kernel: (d, n), LeCun normal, no bias; null experts last.
  """

  def __init__(
    self,
    width: int,
    num_experts: int,
    *,
    k: int = 2,
    capacity_factor: float | None = 1.0,
    eval_capacity_factor: float | Literal['same'] | None = 'same',
    capacity_multiple: int = 1,
    noise_std: float = 1.0,
    batch_priority: bool = False,
    normalize: bool = False,
    num_null: int = 0,
    losses: Mapping[str, float] | Coefficients = V_MOE,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the router.

    Args:
      width: of a token.
      num_experts: E.
      k: experts of a token.
      capacity_factor: c, 1 if even use just fits; None: nothing is dropped.
      eval_capacity_factor: c where there is no key; 'same': capacity_factor.
      capacity_multiple: that the capacity is rounded up to; 4 in V-MoE's code.
      noise_std: E times the standard deviation of the noise on the logits.
      batch_priority: the largest first gates go first, not the first tokens.
      normalize: divides the k gates by their sum.
      num_null: null experts.
      losses: names out of LOSSES with coefficients; see `moe.losses`.
      param_dtype: of the kernel.
      rngs: source of the kernel's key.

    Raises:
      ValueError: an argument is out of its range.
    """
    if eval_capacity_factor == 'same':
      eval_capacity_factor = capacity_factor
    self.num_experts, self.num_null, self.k = num_experts, num_null, k
    self.capacity_factor = capacity_factor
    self.eval_capacity_factor = eval_capacity_factor
    self.capacity_multiple = capacity_multiple
    self.noise_std, self.batch_priority = noise_std, batch_priority
    self.normalize = normalize or num_null > 0
    self.losses = tuple(dict(losses).items())
    gating.check_sizes(width, num_experts)
    self._check()
    self.kernel = gating.kernel(
      width, num_experts + num_null, param_dtype=param_dtype, rngs=rngs
    )

  @property
  def causal(self) -> bool:
    """Whether no token's output depends on a later token."""
    return self.capacity_factor is None and self.eval_capacity_factor is None

  def __call__(
    self,
    x: Float[Array, 'm d'],
    *,
    mask: Bool[Array, ' m'] | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[routing.Assignment, routing.Aux]:
    """Routes one group of tokens; see `routing.Router`."""
    logits = gating.logits(x, self.kernel[...])
    noisy = gating.noisy(logits, self._std(key), key)
    gates = jax.nn.softmax(noisy, axis=1)
    _, choices = jax.lax.top_k(gates, self.k)
    priority = self._priority(gates, choices, mask)
    wanted = priority > -jnp.inf
    assignment = routing.Assignment(
      self._combine(gates, wanted)[:, : self.num_experts],
      priority[:, : self.num_experts],
      self._capacity(x.shape[0], key),
      min(self.k, self.num_experts),
      adaptive=self.num_null > 0,
    )
    return assignment, routing.Aux(
      losses=self._losses(logits, noisy, gates, choices, mask, key)
    )

  def _check(self):
    require, total = gating.require, self.num_experts + self.num_null
    require(self.num_null >= 0, 'num_null', self.num_null, 'at least 0')
    require(
      1 <= self.k <= total, 'k', self.k, f'1 to {total}, the number of experts'
    )
    for name in ('capacity_factor', 'eval_capacity_factor'):
      if getattr(self, name) is not None:
        gating.check_capacity_factor(name, getattr(self, name))
    require(
      not (self.batch_priority and self.causal),
      'batch_priority',
      True,
      'False: without a capacity no token goes before another',
    )
    multiple = self.capacity_multiple
    require(multiple >= 1, 'capacity_multiple', multiple, 'at least 1')
    require(self.noise_std >= 0, 'noise_std', self.noise_std, 'at least 0')
    for name, coefficient in self.losses:
      require(name in LOSSES, 'losses', name, f'names out of {LOSSES}')
      require(coefficient >= 0, f'losses[{name}]', coefficient, 'at least 0')

  def _std(self, key):
    if key is None:
      return 0.0
    return self.noise_std / (self.num_experts + self.num_null)

  def _capacity(self, num_tokens, key):
    factor = self.eval_capacity_factor if key is None else self.capacity_factor
    return gating.capacity(
      num_tokens,
      self.num_experts + self.num_null,
      factor,
      choices=self.k,
      multiple=self.capacity_multiple,
    )

  def _priority(self, gates, choices, mask):
    """Returns minus the place in the queue, as (m, n), -inf where not chosen.

    Args:
      gates: (m, n) of all experts.
      choices: (m, k) experts by descending gate.
      mask: (m) False where a token is padding.
    """
    m = choices.shape[0]
    most = MAX_ORDER // self.k
    allowed = f'{most} at most with k={self.k}'
    gating.require(m <= most, 'x', f'{m} tokens', allowed)
    place = jnp.arange(m)
    if self.batch_priority:
      first = jnp.max(gates, axis=1)
      place = jnp.argsort(jnp.argsort(-first))  # both stable: earlier first
    order = jnp.arange(self.k)[None] * m + place[:, None]
    if mask is not None:
      order = jnp.where(mask[:, None], order, jnp.inf)
    # Reduced over k as it is made: no array of (m, k, n) stays.
    chosen = choices[:, :, None] == jnp.arange(self.kernel.shape[1])[None, None]
    order = order.astype(jnp.float32)[:, :, None]
    return -jnp.min(jnp.where(chosen, order, jnp.inf), axis=1)

  def _combine(self, gates, wanted):
    """Returns the gates of the chosen experts, 0 of others and null ones."""
    real = jnp.arange(gates.shape[1]) < self.num_experts
    gates = jnp.where(wanted & real[None], gates, 0)
    if not self.normalize:
      return gates
    total = jnp.sum(gates, axis=1, keepdims=True)
    return gates / jnp.where(total > 0, total, 1)

  def _losses(self, logits, noisy, gates, choices, mask, key):
    count = self._count(choices, gates.shape[1])
    compute = {
      'importance': lambda: losses.importance(
        self._pool(jax.nn.softmax(logits, axis=1)), mask
      ),
      'load': lambda: self._load(logits, noisy, choices, mask, self._std(key)),
      'switch': lambda: losses.switch(gates, count, mask),
      'gshard': lambda: losses.gshard(gates, count, mask),
      'z': lambda: losses.z(logits, mask),
    }
    return {name: c * compute[name]() for name, c in self.losses}

  def _load(self, logits, noisy, choices, mask, std):
    if not std:
      return jnp.zeros(())
    # A slice of the last choice would make XLA sort all experts on CPU.
    threshold = jnp.min(jnp.take_along_axis(noisy, choices, axis=1), axis=1)
    chances = losses.chances(logits, threshold, std)
    return losses.load(self._pool(chances), mask)

  def _count(self, choices, n):
    """Returns the choices (m, n) that the balance losses count."""
    if not self.num_null:
      return jax.nn.one_hot(choices[:, 0], n)
    return self._pool(jnp.mean(jax.nn.one_hot(choices, n), axis=1))

  def _pool(self, values):
    """Replaces the values of the null experts (m, n) by their mean."""
    if not self.num_null:
      return values
    null = values[:, self.num_experts :]
    null = jnp.broadcast_to(jnp.mean(null, axis=1, keepdims=True), null.shape)
    return jnp.concatenate([values[:, : self.num_experts], null], axis=1)
