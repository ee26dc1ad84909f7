"""From the fields of a config to an MoE layer: the registry of routers."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe import config as softmoe_config
from softmoe.errors import UserError
from softmoe.models import config as config_lib
from softmoe.moe import experts, layer, mlp, routing
from softmoe.moe.routers import (
  bias_balanced,
  expert_threshold,
  experts_choice,
  hashing,
  mixture_of_tokens,
  relu,
  segment_soft,
  soft,
  threshold,
  tokens_choice,
)


class Entry(NamedTuple):
  """How a router is made.

  Attributes:
    cls: its class.
    fields: those of `MoEConfig` that it takes, under the same names.
    optional: those of `fields` that it takes as None where the config, whose
      fields are never None, has 0.
    derive: from the fields to further arguments, which follow from them.
  """

  cls: Callable[..., routing.Router]
  fields: tuple[str, ...] = ()
  optional: tuple[str, ...] = ()
  derive: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: {}


def _mode(fields: dict[str, Any]) -> dict[str, Any]:
  dropless = fields['capacity_factor'] is None
  return {'mode': 'dropless' if dropless else 'capacity'}


def _soft(dispatch: str = 'soft', combine: str = 'soft') -> Entry:
  weights = dict(dispatch=dispatch, combine=combine)
  scale = ('scale_init',) if 'soft' in weights.values() else ()
  fields = ('slots_per_expert', *scale)
  return Entry(soft.SoftRouter, fields, derive=lambda fields: weights)


ROUTERS = {
  'soft': _soft(),
  'uniform': _soft(dispatch='uniform', combine='uniform'),
  'uniform_soft': _soft(dispatch='uniform'),
  'soft_uniform': _soft(combine='uniform'),
  'identity': Entry(soft.IdentityRouter, ('slots_per_expert',)),
  'hash': Entry(hashing.HashRouter),
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
    threshold.Threshold,
    ('threshold', 'capacity_factor', 'eval_capacity_factor', 'balance'),
    optional=('capacity_factor', 'eval_capacity_factor'),
    derive=_mode,
  ),
  'bias_balanced': Entry(
    bias_balanced.BiasBalanced,
    ('k', 'rate', 'capacity_factor'),
    optional=('capacity_factor',),
  ),
  'quantile_balanced': Entry(
    bias_balanced.BiasBalanced,
    ('k', 'capacity_factor'),
    optional=('capacity_factor',),
    derive=lambda fields: {'balance_by': 'quantile'},
  ),
  'expert_threshold': Entry(expert_threshold.ExpertThreshold, ('k',)),
  'relu': Entry(relu.ReLURouter, ('k',)),
  'segment_soft': Entry(
    segment_soft.SegmentSoft, ('segment', 'slots_per_expert', 'scale_init')
  ),
}
OPTIONS = 'config.model.moe.router_options'
NAMED = (
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
  inspect.Parameter.KEYWORD_ONLY,
)
# What the layer reads, whatever the router.
COMMON = frozenset(
  (
    'router',
    'router_options',
    'blocks',
    'num_experts',
    'expert_dim',
    'expert_init',
    'lora_rank',
    'shared_dim',
    'group_size',
    'exchange_chunks',
    'buffer_factor',
    'forced_routing',
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
    router = make_router(config, rngs)
    _check_routing(config, router)
    return layer.MoE(
      router,
      experts.Experts(
        make(moe.expert_dim or config.mlp_dim),
        moe.num_experts,
        init=moe.expert_init,
        lora_rank=moe.lora_rank,
        rngs=rngs,
      ),
      shared=make(moe.shared_dim)(rngs) if moe.shared_dim else None,
      group_size=moe.group_size,
      exchange_chunks=moe.exchange_chunks,
      buffer_factor=moe.buffer_factor,
      forced_routing=moe.forced_routing,
    )
  except UserError as e:
    if e.field in dict(moe.router_options):
      raise UserError(OPTIONS, (e.field, e.given), e.expected) from e
    raise UserError(f'config.model.moe.{e.field}', e.given, e.expected) from e


def make_router(
  config: config_lib.TransformerConfig, rngs: nnx.Rngs
) -> routing.Router:
  """Returns the router alone."""
  moe = config.moe
  entry = entry_of(moe.router)
  common = dict(
    width=config.width,
    num_experts=moe.num_experts,
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
  )
  further = _arguments(entry, moe) | dict(moe.router_options)
  if is_own(moe.router):
    sizes = common.pop('width'), common.pop('num_experts')
    return entry.cls(*sizes, **_taken(entry, common), **further)
  return entry.cls(**_taken(entry, common), **further)


def entry_of(router: str) -> Entry:
  """Returns how a router is made, one of the registry's or of one's own.

  One's own, 'my_module:MyRouter', is called with the width, the number of
  experts and `rngs=`, with `param_dtype=` if it takes that, and with
  `MoEConfig.router_options`.

  Raises:
    UserError: there is no such router.
  """
  if is_own(router):
    return Entry(softmoe_config.load('model.moe.router', router))
  if router not in ROUTERS:
    expected = f"one of {sorted(ROUTERS)} or 'my_module:MyRouter'"
    raise UserError('config.model.moe.router', router, expected)
  return ROUTERS[router]


def is_own(router: str) -> bool:
  """Tells whether a router is not of this package."""
  return ':' in router


def _arguments(entry: Entry, moe: config_lib.MoEConfig) -> dict[str, Any]:
  """Returns the arguments that come from fields of the config."""
  values = dataclasses.asdict(moe)
  if not values['eval_capacity_factor']:  # as in training
    values['eval_capacity_factor'] = values['capacity_factor']
  fields = {name: values[name] for name in entry.fields}
  fields |= {name: fields[name] or None for name in entry.optional}
  return fields | entry.derive(fields)


def _parameters(entry: Entry) -> dict[str, inspect.Parameter]:
  """Returns what the constructor takes, by name, without `self`."""
  # Modules have a metaclass, which hides the signature of the class itself.
  is_class = isinstance(entry.cls, type)
  signature = inspect.signature(entry.cls.__init__ if is_class else entry.cls)
  return dict(list(signature.parameters.items())[is_class:])


def _taken(entry: Entry, arguments: dict[str, Any]) -> dict[str, Any]:
  """Returns those of the arguments that the constructor names."""
  names = _parameters(entry)
  return {k: v for k, v in arguments.items() if k in names}


def make_mlp(
  config: config_lib.TransformerConfig, mlp_dim: int, rngs: nnx.Rngs
) -> mlp.Mlp:
  """Returns an MLP of the model's types."""
  return mlp.Mlp(
    config.width,
    mlp_dim,
    activation=config.activation,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
  )


def check(moe: config_lib.MoEConfig) -> None:
  """Raises a UserError for a router or field that does not fit the others."""
  entry = entry_of(moe.router)
  read = COMMON | set(entry.fields)
  reason = f'the router {moe.router!r} does not read it'
  if is_own(moe.router):
    reason = 'a router of your own takes its settings by `router_options`'
  for field in dataclasses.fields(moe):
    given = getattr(moe, field.name)
    if field.name not in read and given != field.default:
      raise UserError(
        f'config.model.moe.{field.name}', given, f'{field.default!r}: {reason}'
      )
  given = moe.eval_capacity_factor
  if entry.cls is threshold.Threshold and given and not moe.capacity_factor:
    expected = '0, or a capacity_factor above 0 as well'
    raise UserError('config.model.moe.eval_capacity_factor', given, expected)
  _check_options(entry, moe)


def _check_routing(
  config: config_lib.TransformerConfig, router: routing.Router
) -> None:
  """Raises a UserError for a field that this kind of routing cannot follow."""
  chunks, forced = config.moe.exchange_chunks, config.moe.forced_routing
  if chunks == 1 and not forced:
    return
  token = jax.ShapeDtypeStruct((1, config.width), jnp.float32)
  routed = routing.traced(router, token, key=jax.random.key(0))
  if isinstance(routed, routing.Slots):
    if forced:
      raise UserError('forced_routing', forced, "'', since all slots are dense")
  elif routed.dropless and chunks != 1:
    expected = '1, since dropless experts have no slots'
    raise UserError('exchange_chunks', chunks, expected)


def _check_options(entry: Entry, moe: config_lib.MoEConfig) -> None:
  """Raises a UserError for an option that is unknown, doubled or missing."""
  parameters, names = _parameters(entry), [k for k, _ in moe.router_options]
  known = {'rngs', 'param_dtype', 'width', 'num_experts'}
  if is_own(moe.router):
    known |= set(list(parameters)[:2])  # whatever they are called
  known |= set(_arguments(entry, moe))
  named = {k: p for k, p in parameters.items() if p.kind in NAMED}
  free = sorted(set(named) - known)
  missing = [k for k in free if named[k].default is inspect.Parameter.empty]
  takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  for name in names:
    valid = name not in known if takes_any else name in free
    if not valid or names.count(name) > 1:
      expected = f'{moe.router!r} takes each of {free} once, nothing else'
      raise UserError(OPTIONS, name, expected)
  for name in missing:
    if name not in names:
      raise UserError(OPTIONS, moe.router_options, f'a value of {name!r} too')
