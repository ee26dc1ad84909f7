"""The transformer's MLP, which is also the default expert."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from softmoe import recompute
from softmoe.errors import UserError
from softmoe.moe import dot, stacked_dot
from softmoe.moe.execution import grouped_matmul

_ACTIVATIONS = {
  'gelu': functools.partial(jax.nn.gelu, approximate=True),
  'gelu_exact': functools.partial(jax.nn.gelu, approximate=False),
  'relu': jax.nn.relu,
  'swiglu': jax.nn.silu,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


class Mlp(nnx.Module):
  """Linear, activation, Linear.

  With 'swiglu' (https://arxiv.org/abs/2002.05202) a third matrix makes what the
  activated half is multiplied by. Kernels start Xavier uniform and biases
  normal(1e-6), as in AugReg (https://arxiv.org/abs/2106.10270).
  """

  def __init__(
    self,
    width: int,
    mlp_dim: int,
    *,
    activation: str = 'gelu',
    dtype: jax.typing.DTypeLike | None = None,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      width: of a token.
      mlp_dim: hidden width.
      activation: 'gelu' (its tanh approximation), 'gelu_exact', 'relu' or
        'swiglu'.
      dtype: of the computation; None: as the tokens and parameters.
      param_dtype: of the parameters.
      rngs: source of the parameters' keys.

    Raises:
      UserError: the activation is unknown.
    """
    if activation not in ACTIVATIONS:
      raise UserError('activation', activation, f'one of {ACTIVATIONS}')
    init = nnx.initializers
    self.dtype, self.activation = dtype, activation
    options = dict(
      kernel_init=init.xavier_uniform(),
      bias_init=init.normal(1e-6),
      dtype=dtype,
      param_dtype=param_dtype,
      dot_general=dot.dot_general,
      rngs=rngs,
    )
    self.up = nnx.Linear(width, mlp_dim, **options)
    self.down = nnx.Linear(mlp_dim, width, **options)
    if activation == 'swiglu':
      self.factor = nnx.Linear(width, mlp_dim, **options)

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Applies the MLP to every token by itself."""
    return self._apply(lambda linear, x: linear(x), x)

  def hidden(self, x: Float[Array, '*b d']) -> Float[Array, '*b f']:
    """Returns what the hidden units say of every token."""
    return self._activate(*(linear(x) for linear in self._first()))

  def gated(
    self, x: Float[Array, 'n d'], gates: Float[Array, ' n']
  ) -> Float[Array, 'n d']:
    """Returns each row's output times its gate.

    The gates enter before the last matmul, so that their gradient does not need
    its output.
    """
    h = self.hidden(x)
    down: Any = self.down
    h, kernel, bias, gates = down.promote_dtype(
      (h, down.kernel[...], down.bias[...], gates[:, None]), dtype=down.dtype
    )
    return (gates * h) @ kernel + gates * bias[None]

  def cast(self) -> 'Mlp':
    """Returns the same with parameters in the type that it computes in."""
    dtype = self.dtype
    return jax.tree.map(lambda w: w if dtype is None else w.astype(dtype), self)

  def grouped(
    self, x: Float[Array, 'n d'], group_sizes: Int[Array, ' e']
  ) -> Float[Array, 'n d']:
    """Applies a stack of e MLPs to rows that are sorted by expert.

    Args:
      x: rows; those past the last group's come back as anything.
      group_sizes: number of rows of each expert.
    """
    return self._apply(_grouped_linear, x, group_sizes)

  def stacked(self, x: Float[Array, 'e n d']) -> Float[Array, 'e n d']:
    """Applies a stack of e MLPs, each to rows of its own."""
    return self._apply(_stacked_linear, x)

  def _apply(
    self, apply: Callable[..., Array], x: Float[Array, '*b d'], *rows: Array
  ) -> Float[Array, '*b d']:
    """Applies the MLP, given how to apply a `Linear` to x and what is of rows.

    Of the hidden units what the first matmuls return is all that is kept.
    """

    def last(down, rows, *units):
      return apply(down, self._activate(*units), *rows)

    units = (apply(linear, x, *rows) for linear in self._first())
    return recompute.from_arguments(last)(self.down, rows, *units)

  def _first(self) -> tuple[Any, ...]:
    swiglu = self.activation == 'swiglu'
    return (self.up, self.factor) if swiglu else (self.up,)

  def _activate(self, *units: Float[Array, '*b f']) -> Float[Array, '*b f']:
    """Returns what the last matmul takes, of what the first ones return."""
    return math.prod(units[1:], start=_ACTIVATIONS[self.activation](units[0]))


def _stacked_linear(
  linear: Any, x: Float[Array, 'e n d']
) -> Float[Array, 'e n f']:
  x, kernels, biases = linear.promote_dtype(
    (x, linear.kernel[...], linear.bias[...]), dtype=linear.dtype
  )
  return stacked_dot.multiply(x, kernels) + biases[:, None]


def _grouped_linear(
  linear: Any, x: Float[Array, 'n d'], group_sizes: Int[Array, ' e']
) -> Float[Array, 'n f']:
  x, kernel, bias = linear.promote_dtype(
    (x, linear.kernel[...], linear.bias[...]), dtype=linear.dtype
  )
  group = jnp.repeat(
    jnp.arange(len(group_sizes)), group_sizes, total_repeat_length=len(x)
  )
  return grouped_matmul.grouped_matmul(x, kernel, group_sizes) + bias[group]
