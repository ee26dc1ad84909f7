"""Hash routing: a fixed random table from a token's id to its expert.

Roller et al., 2021, "Hash Layers For Large Sparse Models",
https://arxiv.org/abs/2106.04426.

Axes: `m` tokens of a group, `d` width, `e` experts.
"""

import functools

import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from softmoe.errors import UserError
from softmoe.moe import routing
from softmoe.moe.routers import gating


class HashRouter(nnx.Module):
  """Sends a token where the table sends its id, with gate 1 and no loss.

  The table is random and even: no expert has more than one entry more of the
  vocabulary than another. (Common entries still make some experts busier.)
  Nothing is learned, and an expert keeps every token.
  """

  causal = True

  def __init__(self, num_experts: int, vocab_size: int, *, seed: int = 0):
    """Creates the router.

    Args:
      num_experts: how many to choose from.
      vocab_size: ids go from 0 to vocab_size - 1.
      seed: of the table; other layers of a model want other tables.

    Raises:
      ValueError: an argument is out of its range.
    """
    require = gating.require
    require(num_experts >= 1, 'num_experts', num_experts, 'at least 1')
    require(vocab_size >= 1, 'vocab_size', vocab_size, 'at least 1')
    require(seed >= 0, 'seed', seed, 'at least 0')
    self.num_experts = num_experts
    self.vocab_size = vocab_size
    self.seed = seed

  def __call__(
    self,
    x: Float[Array, 'm d'],
    *,
    mask: Bool[Array, ' m'] | None = None,
    key: PRNGKeyArray | None = None,
    token_ids: Int[Array, ' m'] | None = None,
  ) -> tuple[routing.Assignment, routing.Aux]:
    """Routes one group of tokens.

    Args:
      x: tokens, which decide nothing.
      mask: False where a token is padding.
      key: not used: there is no noise.
      token_ids: place of each token in the vocabulary. One outside of it is
        routed as the nearest id: values cannot be checked in compiled code.

    Returns:
      The assignment; no loss; the metric 'receive_max', the largest share of
      tokens that an expert receives.

    Raises:
      ValueError: there are no ids.
    """
    del key
    if token_ids is None:
      allowed = f'0 to {self.vocab_size - 1} for each of {x.shape[0]} tokens'
      raise UserError('token_ids', None, allowed)
    table = make_table(self.num_experts, self.vocab_size, self.seed)
    expert = jnp.take(jnp.asarray(table), token_ids, mode='clip')
    wanted = expert[:, None] == jnp.arange(self.num_experts)[None]
    if mask is not None:
      wanted &= mask[:, None]
    load = routing.mean_over_tokens(wanted.astype(jnp.float32), mask)
    assignment = routing.Assignment(
      gates=wanted.astype(jnp.float32),
      priority=jnp.where(wanted, 0.0, -jnp.inf),
      choices=1,
    )
    return assignment, routing.Aux(metrics={'receive_max': jnp.max(load)})


# Computed rather than kept, so that no optimizer or checkpoint ever sees it.
@functools.lru_cache
def make_table(
  num_experts: int, vocab_size: int, seed: int
) -> Int32[np.ndarray, ' vocab']:
  """Returns the expert of every id.

  NumPy promises the raw stream of a bit generator to stay the same from one
  release to the next, and nothing made from it: a trained model depends on it.
  """
  order = np.argsort(np.random.Philox(seed).random_raw(vocab_size))
  table = np.empty(vocab_size, np.int32)
  table[order] = np.arange(vocab_size) % num_experts
  table.flags.writeable = False
  return table
