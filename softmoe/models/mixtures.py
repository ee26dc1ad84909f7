"""From the fields of a config to an MoE layer: the registry of routers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.models import config as config_lib
from softmoe.moe import experts, layer, mlp, routing
from softmoe.moe.routers import (
  bias_balanced,
  experts_choice,
  mixture_of_tokens,
  relu,
  soft,
  threshold,
  tokens_choice,
)


class Entry(NamedTuple):
  """How a router is made.

  Attributes:
    create: called with width, number of experts, param_dtype and rngs.
    fields: those of `MoEConfig` that it takes too, under the same names.
    optional: those of `fields` that it takes as None where the config, whose
      fields are never None, has 0.
  """

  create: Callable[..., routing.Router]
  fields: tuple[str, ...]
  optional: tuple[str, ...] = ()


def _identity(width, num_experts, slots_per_expert, *, param_dtype, rngs):
  return soft.IdentityRouter(num_experts, slots_per_expert)


def _threshold(width, num_experts, *, param_dtype, rngs, **fields):
  mode = 'dropless' if fields['capacity_factor'] is None else 'capacity'
  return threshold.Threshold(width, num_experts, mode=mode, rngs=rngs, **fields)


def _soft(**weights: str) -> Entry:
  create = functools.partial(soft.SoftRouter, **weights)
  return Entry(create, ('slots_per_expert',))


ROUTERS = {
  'soft': _soft(),
  'uniform': _soft(dispatch='uniform', combine='uniform'),
  'uniform_soft': _soft(dispatch='uniform'),
  'soft_uniform': _soft(combine='uniform'),
  'identity': Entry(_identity, ('slots_per_expert',)),
  'mixture_of_tokens': Entry(
    mixture_of_tokens.MixtureOfTokens, ('group_size', 'temperature')
  ),
  'tokens_choice': Entry(
    tokens_choice.TokensChoice,
    (
      'k',
      'capacity_factor',
      'eval_capacity_factor',
      'batch_priority',
      'normalize',
      'num_null',
      'noise_std',
      'losses',
    ),
    optional=('capacity_factor', 'eval_capacity_factor'),
  ),
  'experts_choice': Entry(
    experts_choice.ExpertsChoice,
    ('capacity_factor', 'softmax_over', 'noise_std'),
  ),
  'threshold': Entry(
    _threshold,
    ('threshold', 'capacity_factor', 'eval_capacity_factor', 'balance'),
    optional=('capacity_factor', 'eval_capacity_factor'),
  ),
  'bias_balanced': Entry(
    bias_balanced.BiasBalanced,
    ('k', 'rate', 'capacity_factor'),
    optional=('capacity_factor',),
  ),
  'relu': Entry(relu.ReLURouter, ('k',)),
}
# What the layer reads, whatever the router.
COMMON = frozenset(
  (
    'router',
    'blocks',
    'num_experts',
    'expert_dim',
    'expert_init',
    'shared_dim',
    'group_size',
    'exchange_chunks',
  )
)


def make_moe(config: config_lib.TransformerConfig, rngs: nnx.Rngs) -> layer.MoE:
  """Returns the MoE layer that a config asks for, with MLPs as experts.

  Raises:
    UserError: a field is out of its range or not one of the router's.
  """
  moe = config.moe
  make = lambda width: lambda rngs: make_mlp(config, width, rngs)
  check(moe)
  try:
    return layer.MoE(
      make_router(config, rngs),
      experts.Experts(
        make(moe.expert_dim or config.mlp_dim),
        moe.num_experts,
        init=moe.expert_init,
        rngs=rngs,
      ),
      shared=make(moe.shared_dim)(rngs) if moe.shared_dim else None,
      group_size=moe.group_size,
      exchange_chunks=moe.exchange_chunks,
    )
  except UserError as e:
    raise UserError(f'config.model.moe.{e.field}', e.given, e.expected) from e


def is_dropless(moe: config_lib.MoEConfig) -> bool:
  """Tells whether experts keep every token that wants them at evaluation.

  The answer for training is that of `in_training(moe)`.
  """
  if moe.router == 'relu':
    return True
  sparse = 'capacity_factor' in ROUTERS[moe.router].optional
  return sparse and not (moe.eval_capacity_factor or moe.capacity_factor)


def in_training(moe: config_lib.MoEConfig) -> config_lib.MoEConfig:
  """Returns the fields with which evaluation has the capacity of training."""
  return dataclasses.replace(moe, eval_capacity_factor=0.0)


def is_adaptive(moe: config_lib.MoEConfig) -> bool:
  """Tells whether tokens differ in how many experts run at evaluation."""
  adaptive = moe.router in ('relu', 'threshold') or moe.num_null > 0
  return adaptive and is_dropless(moe)


def experts_per_token(moe: config_lib.MoEConfig, num_tokens: int) -> float:
  """Returns how many experts run for a token; of a router without a bound, all.

  Args:
    moe: of an MoE block.
    num_tokens: of an example.
  """
  fields = ROUTERS[moe.router].fields
  if 'slots_per_expert' in fields:
    slots = moe.num_experts * moe.slots_per_expert
    return slots / (num_tokens * moe.group_size)
  if moe.router == 'mixture_of_tokens':
    return moe.num_experts / moe.group_size
  if moe.router == 'experts_choice':
    return moe.capacity_factor
  return moe.k if 'k' in fields else moe.num_experts


def make_router(
  config: config_lib.TransformerConfig, rngs: nnx.Rngs
) -> routing.Router:
  """Returns the router alone."""
  entry, values = ROUTERS[config.moe.router], dataclasses.asdict(config.moe)
  if not values['eval_capacity_factor']:  # as in training
    values['eval_capacity_factor'] = values['capacity_factor']
  fields = {name: values[name] for name in entry.fields}
  fields |= {name: fields[name] or None for name in entry.optional}
  return entry.create(
    config.width,
    config.moe.num_experts,
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
    **fields,
  )


def make_mlp(
  config: config_lib.TransformerConfig, mlp_dim: int, rngs: nnx.Rngs
) -> mlp.Mlp:
  """Returns an MLP of the model's types."""
  return mlp.Mlp(
    config.width,
    mlp_dim,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
  )


def check(moe: config_lib.MoEConfig) -> None:
  """Raises a UserError for a router or field that would have no effect."""
  if moe.router not in ROUTERS:
    raise UserError(
      'config.model.moe.router', moe.router, f'one of {sorted(ROUTERS)}'
    )
  read = COMMON | set(ROUTERS[moe.router].fields)
  for field in dataclasses.fields(moe):
    given = getattr(moe, field.name)
    if field.name not in read and given != field.default:
      raise UserError(
        f'config.model.moe.{field.name}',
        given,
        f'{field.default!r}: the router {moe.router!r} does not read it',
      )
  if moe.exchange_chunks != 1 and is_dropless(in_training(moe)):
    raise UserError(
      'config.model.moe.exchange_chunks',
      moe.exchange_chunks,
      '1, since dropless experts have no slots',
    )
