"""The bias at which an expert is chosen by its share of the tokens.

Su, 2026, "Quantile Balancing", https://kexue.fm/archives/11619; over a batch
that no device holds it is found by counting, as in Kimi K3's technical report
(section 2.3.3, appendix D), https://github.com/MoonshotAI/Kimi-K3.

A token chooses the k largest of s + b. With c its (k + 1)-th largest, it
chooses an expert where b > c - s; so the expert is chosen by its share k / e of
the tokens where b is that quantile of their c - s. One number for each expert
could not be found from the parts of a batch, counts can: of the tokens that
would choose the expert with each of several candidates for its bias.

The report counts in 1,000 bins of equal width. Here candidates are close to the
present bias and far apart elsewhere: a first step that is off by a fraction of
a wide gap is followed by finer ones, and few numbers are kept and counted.

Axes: `m` tokens of a group, `e` experts, `c` candidates.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe.moe import routing

# Scores are in [0, 1]. So what balances two experts differs by 1 at the most, a
# centred bias is in [-1, 1], c - s in [-2, 2], and the last candidate is above
# all. Cubes: 1e-4 apart near 0.
OFFSETS = 3 * np.linspace(-1, 1, 65, dtype=np.float32) ** 3


@dataclasses.dataclass(frozen=True)
class ToQuantile(routing.Rule):
  """Candidates gather around the bias that a share of the tokens asks for.

  Biases have a mean of 0 over the experts. Without tokens they stay.

  Attributes:
    share: of the tokens, that are to choose an expert.
  """

  share: float
  mean: ClassVar[bool] = False

  def __call__(
    self, value: Float[Array, '*b e c'], statistic: Float[Array, '*b e c']
  ) -> Float[Array, '*b e c']:
    """Returns the new candidates; the statistic is `choosers`."""
    tokens = statistic[..., -1]  # all would choose the last candidate
    quantile = jnp.vectorize(jnp.interp, signature='(),(c),(c)->()')
    bias = quantile(self.share * tokens, statistic, value)
    bias -= jnp.mean(bias, axis=-1, keepdims=True)
    return jnp.where(tokens[..., None] > 0, around(bias), value)


def around(bias: Float[Array, '*b e']) -> Float[Array, '*b e c']:
  """Returns candidates, of which the middle one is the bias."""
  return bias[..., None] + OFFSETS.reshape(*[1] * bias.ndim, -1)


def bias(candidates: Float[Array, 'e c']) -> Float[Array, ' e']:
  """Returns what the candidates are around."""
  return candidates[:, len(OFFSETS) // 2]


def choosers(
  scores: Float[Array, 'm e'],
  candidates: Float[Array, 'e c'],
  k: int,
  mask: Bool[Array, ' m'] | None,
) -> Float[Array, 'e c']:
  """Counts the tokens that would choose each expert with each candidate.

  Args:
    scores: in [0, 1], without the bias.
    candidates: for the bias of each expert, ascending.
    k: experts of a token.
    mask: False where a token is padding.
  """
  biased = scores + bias(candidates)[None]
  largest, _ = jax.lax.top_k(biased, min(k + 1, scores.shape[1]))
  # Not c - s: rounding could put the (k + 1)-th on either side of its bias.
  chosen = scores[:, :, None] + candidates[None] > largest[:, -1:, None]
  if mask is not None:
    chosen &= mask[:, None, None]
  return jnp.sum(chosen.astype(jnp.float32), axis=0)
