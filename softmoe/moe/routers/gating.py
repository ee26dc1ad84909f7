"""What routers with a linear gate share: logits, noise and capacity."""

import fractions
import math
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from softmoe.errors import UserError


def kernel(
  width: int,
  num_experts: int,
  *,
  param_dtype: jax.typing.DTypeLike = jnp.float32,
  rngs: nnx.Rngs,
) -> nnx.Param:
  """Returns the router's weights (width, num_experts), LeCun normal."""
  init = nnx.initializers.lecun_normal()
  return nnx.Param(init(rngs.params(), (width, num_experts), param_dtype))


def logits(
  x: Float[Array, 'm d'], kernel: Float[Array, 'd_in e']
) -> Float[Array, 'm e']:
  """Returns `x @ kernel` in float32, whatever the type of the tokens.

  Raises:
    ValueError: the tokens are not as wide as the kernel.
  """
  check_width(x, kernel.shape[0])
  return jnp.matmul(
    x.astype(jnp.float32),
    kernel.astype(jnp.float32),
    # By default TPUs and GPUs would round the operands to fewer bits.
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )


def noisy(
  logits: Float[Array, 'm e'], std: float, key: PRNGKeyArray | None
) -> Float[Array, 'm e']:
  """Returns the logits plus N(0, std^2), or as they are without a key."""
  if key is None or not std:
    return logits
  return logits + std * jax.random.normal(key, logits.shape, logits.dtype)


def capacity(
  num_tokens: int,
  num_experts: int,
  factor: float | None,
  *,
  choices: int = 1,
  multiple: int = 1,
) -> int | None:
  """Returns the tokens an expert keeps, `num_tokens` at the most.

  That is ceil(num_tokens * choices * factor / num_experts), rounded up to a
  multiple of `multiple`; None, no limit, where the factor is None.
  """
  if factor is None:
    return None
  # Exact in decimals: in floating point 100 * 1.1 / 10 is above 11.
  mean = num_tokens * choices * fractions.Fraction(str(factor)) / num_experts
  return min(num_tokens, math.ceil(mean / multiple) * multiple)


def check_capacity_factor(name: str, factor: float | None):
  """Raises ValueError unless the factor leaves a slot."""
  valid = factor is not None and 0 < factor < math.inf
  require(valid, name, factor, 'above 0, so that an expert keeps a token')


def check_sizes(width: int, num_experts: int):
  """Raises ValueError unless there is a kernel of this size."""
  require(width >= 1, 'width', width, 'at least 1')
  require(num_experts >= 1, 'num_experts', num_experts, 'at least 1')


def require(valid: bool, name: str, value: Any, allowed: str):
  """Raises ValueError that names the argument and what it may be."""
  if not valid:
    raise UserError(name, value, allowed)


def check_width(x: Float[Array, '*b d'], width: int):
  """Raises ValueError unless the tokens are as wide as the router."""
  given = f'width {x.shape[-1]}'
  require(x.shape[-1] == width, 'x', given, f'{width}, the width of the router')
