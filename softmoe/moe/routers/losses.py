"""Auxiliary losses of routers: even use of the experts, moderate logits.

All take one group of tokens and return a scalar before any coefficient;
padding counts nowhere, and a group of padding alone has a loss of 0.

Axes: `m` tokens of a group, `e` experts.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe.moe import routing


def importance(
  gates: Float[Array, 'm e'], mask: Bool[Array, ' m'] | None = None
) -> Float[Array, '']:
  """Returns CV^2 over the experts of sum_t gates[t, e], CV = std / mean.

  Riquelme et al., 2021, https://arxiv.org/abs/2106.05974, appendix A.2, where
  the gates are the softmax of the logits before noise.
  """
  return _squared_variation(gates, mask)


def load(
  chances: Float[Array, 'm e'], mask: Bool[Array, ' m'] | None = None
) -> Float[Array, '']:
  """Returns CV^2 over the experts of mean_t chances[t, e].

  Riquelme et al., 2021, https://arxiv.org/abs/2106.05974, appendix A.2.

  Args:
    chances: that a token chooses an expert, see `losses.chances`.
    mask: False where a token is padding.
  """
  return _squared_variation(chances, mask)


def chances(
  logits: Float[Array, 'm e'], threshold: Float[Array, ' m'], std: float
) -> Float[Array, 'm e']:
  """Returns the chance that fresh noise takes an expert to the top k.

  That is P(logit + noise >= threshold) = 1 - Phi((threshold - logit) / std).

  Args:
    logits: before the noise.
    threshold: the token's k-th largest logit with the noise as drawn.
    std: standard deviation of the noise.
  """
  # The log, as JAX 0.12 cannot differentiate erf in a shard_map.
  z = (logits - threshold[:, None]) / std
  return jnp.exp(jax.scipy.special.log_ndtr(z))


def switch(
  gates: Float[Array, 'm e'],
  choices: Float[Array, 'm e'],
  mask: Bool[Array, ' m'] | None = None,
) -> Float[Array, '']:
  """Returns E sum_e f_e P_e, which is 1 when experts are used evenly.

  Fedus et al., 2022, https://arxiv.org/abs/2101.03961, equations 4 to 6: f_e is
  the share of the tokens whose first choice is e, P_e the mean of gates[t, e].

  Args:
    gates: softmax over the experts; the gradient flows through it alone.
    choices: 1 where the expert is the token's first choice, else 0.
    mask: False where a token is padding.
  """
  return gates.shape[1] * jnp.sum(_products(gates, choices, mask))


def gshard(
  gates: Float[Array, 'm e'],
  choices: Float[Array, 'm e'],
  mask: Bool[Array, ' m'] | None = None,
) -> Float[Array, '']:
  """Returns (1 / E) sum_e (c_e / S) m_e, as printed: 1 / E^2 when even.

  Lepikhin et al., 2020, https://arxiv.org/abs/2006.16668, Algorithm 1: c_e of
  the S tokens have e as their first choice, m_e is the mean of gates[t, e]. The
  authors' code, and V-MoE's, multiply it by E^2, which is `switch`.

  Args:
    gates: softmax over the experts; the gradient flows through it alone.
    choices: 1 where the expert is the token's first choice, else 0.
    mask: False where a token is padding.
  """
  return jnp.mean(_products(gates, choices, mask))


def z(
  logits: Float[Array, 'm e'], mask: Bool[Array, ' m'] | None = None
) -> Float[Array, '']:
  """Returns mean_t logsumexp_e(logits[t, e])^2.

  Zoph et al., 2022 (ST-MoE), https://arxiv.org/abs/2202.08906, equation 5.
  """
  square = jnp.square(jax.nn.logsumexp(logits, axis=-1))
  return routing.mean_over_tokens(square, mask)


def _squared_variation(values, mask):
  """Returns the squared coefficient of variation of the experts' means."""
  means = routing.mean_over_tokens(values, mask)
  total = jnp.mean(means)
  return jnp.var(means) / jnp.square(jnp.where(total > 0, total, 1))


def _products(gates, choices, mask):
  share = routing.mean_over_tokens(choices, mask)
  mean = routing.mean_over_tokens(gates, mask)
  return jax.lax.stop_gradient(share) * mean
