"""Losses and metrics of a layer from those of its groups on all devices.

Axes: `g` groups of a device, `t` tokens of a group.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool

from softmoe.moe import routing
from softmoe.moe.execution import run as execution


def totals(
  aux: routing.Aux,
  result: execution.Result,
  real: Bool[Array, 'g t'],
  flops: int,
  rules: dict[str, routing.Rule],
  total: Callable[[Array], Array],
) -> dict[str, dict[str, Array]]:
  """Returns losses, metrics, weights and statistics; see `MoE.__call__`.

  Args:
    aux: of each group.
    result: of this device.
    real: False where a token is padding; groups of nothing else do not count.
    flops: of one expert on one row.
    rules: of what is steered.
    total: adds a number of each device to one of all.
  """
  with_tokens = jnp.any(real, axis=1)
  num_groups = total(jnp.sum(with_tokens))
  num_tokens = total(jnp.sum(real))

  def add(v):
    filled = with_tokens.reshape(-1, *(1,) * (v.ndim - 1))
    return total(jnp.sum(jnp.where(filled, v, 0), axis=0))

  mean = lambda v: add(v) / jnp.maximum(num_groups, 1)
  per_token = lambda n: total(n) / jnp.maximum(num_tokens, 1)
  counts = {name: per_token(n) for name, n in result.counts.items()}
  counts['flops'] = counts['executed'] * flops
  means = aux.metrics | result.means
  steered = [f'steer_{name}' for name, rule in rules.items() if rule.mean]
  weights = dict.fromkeys([*aux.losses, *means, *steered], num_groups)
  weights |= dict.fromkeys(counts, num_tokens)
  return {
    'losses': jax.tree.map(mean, aux.losses),
    'metrics': jax.tree.map(mean, means) | counts,
    'weights': {k: v.astype(jnp.float32) for k, v in weights.items()},
    'steer': {
      name: (mean if rules[name].mean else add)(v)
      for name, v in aux.steer.items()
    },
  }


def steering(router: Any, statistics: dict[str, Array]) -> dict[str, Array]:
  """Returns losses of value 0 whose gradients are the statistics."""
  losses = {}
  for name, statistic in statistics.items():
    value = getattr(router, name)[...]
    loss = jnp.sum(value * jax.lax.stop_gradient(statistic))
    losses[f'steer_{name}'] = loss - jax.lax.stop_gradient(loss)
  return losses
