"""Threshold routing: the fewest experts whose probabilities reach t (XMoE).

Yang et al., 2024, "XMoE: Sparse Models with Fine-grained and Adaptive Expert
Selection", https://arxiv.org/abs/2403.18926.

Axes: `m` tokens of a group, `d` width, `e` experts.
"""

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe.moe import routing
from softmoe.moe.routers import gating, losses

MODES = ('capacity', 'dropless', 'causal')


class Threshold(nnx.Module):
  """Takes a token's experts by falling probability until they sum to t.

  The gates are the probabilities as they are, so that they sum to less than 1
  (but see `weighted`). A free slot goes to the tokens of whom the expert is the
  first choice, then to second choices and so on, the more probable first among
  equals. The loss is Switch's, on first choices alone. There is no noise.
  Unlike in the authors' code, a padding token wants nothing and counts in no
  loss.

  The modes differ in what an expert keeps. 'capacity' is the authors': an
  expert keeps a fixed number of tokens, chosen among all of the group, at
  evaluation too. 'dropless' keeps every token. 'causal' promises that no
  token's output depends on a later token, and therefore keeps every token.

  Attributes:
    kernel: (d, e), starts uniform in +-1/sqrt(d), float32.
  """

  def __init__(
    self,
    width: int,
    num_experts: int,
    *,
    threshold: float = 0.9,
    mode: str = 'dropless',
    capacity_factor: float | None = None,
    eval_capacity_factor: float | None = None,
    min_capacity: int = 4,
    all_experts: bool = False,
    weighted: bool = True,
    balance: float = 0.01,
    rngs: nnx.Rngs,
  ):
    """Creates the router.

    Args:
      width: of the tokens.
      num_experts: how many to choose from.
      threshold: t, the probability that a token's experts reach together.
      mode: 'capacity', 'dropless' or 'causal'.
      capacity_factor: tokens that an expert keeps, as a multiple of tokens over
        experts; the hard bound on a token's mean number of experts. Given in
        the mode 'capacity' and in no other.
      eval_capacity_factor: the same for calls without a key; None: as above.
      min_capacity: tokens that an expert keeps at the least (all of the group
        where it has fewer).
      all_experts: every token wants every expert, whatever t. The threshold 1
        does not say this: in float32 the likely experts can sum to 1.
      weighted: the gates are the probabilities. Without, which is not the
        paper's, they are 1, so that every expert on is the plain sum; the
        router then learns from the loss alone.
      balance: coefficient of the loss.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: an argument is out of its range.
    """
    gating.check_sizes(width, num_experts)
    _check_threshold(threshold)
    gating.require(mode in MODES, 'mode', mode, f'one of {MODES}')
    gating.require(
      min_capacity >= 1, 'min_capacity', min_capacity, 'at least 1'
    )
    gating.require(balance >= 0, 'balance', balance, 'at least 0')
    _check_factor('capacity_factor', capacity_factor, mode)
    if eval_capacity_factor is None:
      eval_capacity_factor = capacity_factor
    _check_factor('eval_capacity_factor', eval_capacity_factor, mode)
    self.num_experts = num_experts
    self.threshold = threshold
    self.mode = mode
    self.capacity_factor = capacity_factor
    self.eval_capacity_factor = eval_capacity_factor
    self.min_capacity = min_capacity
    self.all_experts = all_experts
    self.weighted = weighted
    self.balance = balance
    bound = width**-0.5
    self.kernel = nnx.Param(
      jax.random.uniform(
        rngs.params(), (width, num_experts), jnp.float32, -bound, bound
      )
    )

  @property
  def causal(self) -> bool:
    """Whether no token's output depends on a later token."""
    return self.mode != 'capacity'

  def __call__(
    self,
    x: Float[Array, 'm d'],
    *,
    mask: Bool[Array, ' m'] | None = None,
    key: PRNGKeyArray | None = None,
    threshold: float | Float[Array, ''] | None = None,
    all_experts: bool | None = None,
  ) -> tuple[routing.Assignment, routing.Aux]:
    """Routes one group of tokens.

    Args:
      x: tokens.
      mask: False where a token is padding.
      key: says no more than that this is training (for the capacity).
      threshold: in place of the router's own, and of every expert; may be
        traced, and is then not looked at: all are wanted at infinity.
      all_experts: in place of the router's own.

    Returns:
      The assignment; the loss 'balance' and the metrics 'top1_probability' and
      'receive_max', the share of tokens that want the most wanted expert.

    Raises:
      ValueError: a threshold outside (0, 1] (a traced one is not looked at).
    """
    if all_experts is None:
      all_experts = self.all_experts and threshold is None
    if threshold is None:
      threshold = self.threshold
    _check_threshold(threshold)
    probabilities = jax.nn.softmax(gating.logits(x, self.kernel[...]))
    above, rank = ranked_above(jax.lax.stop_gradient(probabilities))
    wanted = jnp.full(above.shape, True) if all_experts else above < threshold
    if mask is not None:
      wanted &= mask[:, None]
    capacity = self._capacity(x.shape[0], training=key is not None)
    # The authors' key, by rank and then by probability, up to a constant. Both
    # are float32 and blur the probability by their rounding: this one by 2e-6
    # at rank 63 and not at all at rank 0, theirs the other way round. Without a
    # capacity the order is idle, and the compiler drops the search for ranks.
    order = probabilities if capacity is None else probabilities - rank
    gates = probabilities if self.weighted else jnp.ones_like(probabilities)
    assignment = routing.Assignment(
      gates=gates,
      priority=jnp.where(wanted, jax.lax.stop_gradient(order), -jnp.inf),
      capacity=capacity,
    )
    # Nothing ranks above the first choice alone.
    return assignment, self._aux(probabilities, above == 0, wanted, mask)

  def _capacity(self, num_tokens: int, training: bool) -> int | None:
    factor = self.capacity_factor if training else self.eval_capacity_factor
    capacity = gating.capacity(num_tokens, self.num_experts, factor)
    if capacity is None:
      return None
    return min(num_tokens, max(capacity, self.min_capacity))

  def _aux(
    self,
    probabilities: Float[Array, 'm e'],
    first: Bool[Array, 'm e'],
    wanted: Bool[Array, 'm e'],
    mask: Bool[Array, ' m'] | None,
  ) -> routing.Aux:
    balance = losses.switch(probabilities, first.astype(jnp.float32), mask)
    top1 = routing.mean_over_tokens(jnp.max(probabilities, axis=1), mask)
    receive = routing.mean_over_tokens(wanted.astype(jnp.float32), mask)
    return routing.Aux(
      losses={'balance': self.balance * balance},
      metrics={'top1_probability': top1, 'receive_max': jnp.max(receive)},
    )


def ranked_above(
  probabilities: Float[Array, 'm e'],
) -> tuple[Float[Array, 'm e'], Float[Array, 'm e']]:
  """Returns, for each expert, the sum and the number of those ranked above it.

  More probable experts rank above, and lower indices among equals.

  Compares every expert with every other, one at a time, over vectors of tokens.
  On a CPU this is several times faster than to sort (4,096 tokens, 64 experts,
  two cores: 3 ms for the sum, 5 ms for both, 22 ms for the fastest sort).
  """
  # With the tokens last, every step is a run over contiguous memory.
  columns = probabilities.T
  experts = jnp.arange(columns.shape[0])

  def step(carry, other):
    above, rank = carry
    index, column = other
    earlier = (index < experts)[:, None]
    column = column[None]
    outranks = (column > columns) | ((column == columns) & earlier)
    return (above + jnp.where(outranks, column, 0), rank + outranks), None

  zero = jnp.zeros_like(columns)
  # An accelerator writes and reads the sums once in so many steps.
  (above, rank), _ = jax.lax.scan(
    step, (zero, zero), (experts, columns), unroll=8
  )
  return above.T, rank.T


def _check_threshold(threshold: float | Array):
  if isinstance(threshold, int | float):
    allowed = 'above 0, at most 1 (for every expert: all_experts=True)'
    gating.require(0 < threshold <= 1, 'threshold', threshold, allowed)


def _check_factor(name: str, factor: float | None, mode: str):
  if mode == 'capacity':
    gating.check_capacity_factor(name, factor)
  else:
    allowed = f'None: in mode {mode!r} an expert keeps all that want it'
    gating.require(factor is None, name, factor, allowed)
