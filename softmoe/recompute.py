"""What a backward pass computes again, since keeping it costs more.

Under a scan over blocks whatever autodiff keeps of a block is written to a
stack and read again: of an activation function or a LayerNorm several arrays,
some in float32, of which computing takes less time than reading.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree


def from_arguments(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `fn`, of which the backward pass keeps the arguments alone.

  `jax.checkpoint` says the same, but not within another one: the policy of the
  outer one decides there, and that of `fsdp` keeps everything but weights. It
  has no forward-mode derivative.

  Args:
    fn: of pytrees of arrays. It closes over none.
  """
  call = jax.custom_vjp(fn)
  call.defvjp(
    lambda *arguments: (fn(*arguments), arguments),
    functools.partial(_backward, fn),
  )
  return call


def _backward(fn, arguments: tuple[PyTree, ...], dy: PyTree):
  return jax.vjp(fn, *arguments)[1](dy)
