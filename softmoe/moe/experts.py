"""Experts: copies of one module with parameters of their own, run as one."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe import lora

INITS = ('independent', 'identical')


class Experts(nnx.Module):
  """Experts stacked along axis 0, split over the mesh axis `expert`.

  Attributes:
    stacked: the module that `create` returns, every parameter with a leading
      axis of size `num_experts`.
  """

  def __init__(
    self,
    create: Callable[[nnx.Rngs], Any],
    num_experts: int,
    *,
    init: str = 'independent',
    lora_rank: int = 0,
    rngs: nnx.Rngs,
  ):
    """Creates the experts.

    Args:
      create: returns one expert, any module that maps (..., d) to (..., d')
        and holds nothing but parameters. If its call takes `key`, it gets one
        in training and None at evaluation.
      num_experts: how many.
      init: 'independent' draws each expert's parameters anew (the paper's
        appendix A), 'identical' starts all from the same (the authors' code).
      lora_rank: of what is added to the kernel of each `nnx.Linear`; 0: nothing
        is. See `lora`.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: `init` is unknown, `num_experts` is below 1 or not a multiple
        of the mesh axis `expert`, the rank is too large, or an expert has
        state.
    """
    if init not in INITS:
      raise UserError('expert_init', init, f'one of {INITS}')
    if num_experts < 1:
      raise UserError('num_experts', num_experts, 'at least 1')
    _check_divides(num_experts)

    def make(key: PRNGKeyArray) -> Any:
      rngs = nnx.Rngs(key)
      expert = create(rngs)
      return lora.add(expert, lora_rank, rngs) if lora_rank else expert

    keys = jax.random.split(rngs.params(), num_experts)
    if init == 'identical':
      keys = jnp.broadcast_to(keys[0], keys.shape)
    # Split keys make split parameters: no device ever holds all the experts.
    keys = sharding.by_expert(keys)
    self.stacked = jax.vmap(make)(keys)
    self.lora_rank = lora_rank
    check_stateless('experts', self.stacked)

  @property
  def take_key(self) -> bool:
    """Whether an expert's call takes `key`."""
    return takes_key(self.stacked)

  def merged(self) -> 'Experts':
    """Returns experts that are the same, with no low-rank part of their own."""
    return lora.merged(self) if self.lora_rank else self

  @jax.named_scope('experts')
  def __call__(
    self,
    x: Float[Array, 'e *b d'],
    keys: Key[Array, 'e g'] | None = None,
  ) -> Float[Array, 'e *b d_out']:
    """Applies expert i to x[i].

    Args:
      x: rows.
      keys: (e, g), of the rows x[i, j], for experts that take them; None: this
        is evaluation.
    """
    stacked = self.merged().stacked
    known = has_way(stacked, 'stacked') and keys is None
    if known and not any(jax.typeof(x).sharding.spec):
      return _on_rows(stacked.stacked, x)
    if keys is None:
      call = functools.partial(_evaluate, self.take_key)
      return jax.vmap(call)(stacked, x)
    each_group = jax.vmap(
      lambda expert, x, key: expert(x, key=key), in_axes=(None, 0, 0)
    )
    return jax.vmap(each_group)(stacked, x, keys)

  def flops(self) -> int:
    """Returns the FLOPs of one expert's matrices on one token."""
    shapes = (w.shape for w in jax.tree.leaves(self.stacked))
    return sum(2 * math.prod(s[1:]) for s in shapes if len(s) >= 3)


def takes_key(module: Any) -> bool:
  """Tells whether the call of a module takes `key`."""
  return 'key' in inspect.signature(module.__call__).parameters


def has_way(module: Any, name: str) -> bool:
  """Tells whether a method is another way to what the module's call does.

  As `Mlp` has `stacked`, `gated` and `grouped`. What is inherited beside a call
  of one's own is a way to what the parent's call does.
  """
  methods = (vars(kind) for kind in type(module).__mro__)
  return name in next((m for m in methods if {name, '__call__'} & m.keys()), ())


def check_stateless(field: str, module: Any):
  """Raises UserError if a module holds anything but parameters.

  A mesh, or a loop over experts, would change it behind the module's back.
  """
  for path, variable in nnx.to_flat_state(nnx.state(module)):
    if not isinstance(variable, nnx.Param):
      name = '.'.join(map(str, path))
      raise UserError(
        field,
        f'{type(variable).__name__} {name!r}',
        'parameters alone; for dropout, a call that takes `key`',
      )


def _on_rows(
  call: Callable[[Array], Array], x: Float[Array, 'e *b d']
) -> Float[Array, 'e *b d_out']:
  """Calls with all rows of an expert along one axis."""
  y = call(x.reshape(len(x), -1, x.shape[-1]))
  return y.reshape(*x.shape[:-1], -1)


def _evaluate(takes_key: bool, expert: Any, x: Array) -> Array:
  return expert(x, key=None) if takes_key else expert(x)


def _check_divides(num_experts: int):
  if sharding.is_explicit('expert'):
    size = jax.sharding.get_abstract_mesh().shape['expert']
    if num_experts % size:
      raise UserError(
        'num_experts',
        num_experts,
        f'a multiple of {size}, the size of the mesh axis `expert`',
      )
