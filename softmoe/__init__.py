"""Soft MoE and its peers in JAX/Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from softmoe.moe.execution.grouped_matmul import grouped_matmul
  from softmoe.moe.experts import Experts
  from softmoe.moe.layer import MoE, SoftMoE
  from softmoe.moe.mlp import Mlp
  from softmoe.moe.routers.bias_balanced import BiasBalanced
  from softmoe.moe.routers.experts_choice import ExpertsChoice
  from softmoe.moe.routers.hashing import HashRouter
  from softmoe.moe.routers.mixture_of_tokens import MixtureOfTokens
  from softmoe.moe.routers.relu import ReLURouter
  from softmoe.moe.routers.soft import IdentityRouter, SoftRouter
  from softmoe.moe.routers.threshold import Threshold
  from softmoe.moe.routers.tokens_choice import TokensChoice
  from softmoe.moe.routing import Assignment, Aux, Slots

_HOMES = {
  'Assignment': 'moe.routing',
  'Aux': 'moe.routing',
  'BiasBalanced': 'moe.routers.bias_balanced',
  'Experts': 'moe.experts',
  'ExpertsChoice': 'moe.routers.experts_choice',
  'HashRouter': 'moe.routers.hashing',
  'IdentityRouter': 'moe.routers.soft',
  'MixtureOfTokens': 'moe.routers.mixture_of_tokens',
  'Mlp': 'moe.mlp',
  'MoE': 'moe.layer',
  'ReLURouter': 'moe.routers.relu',
  'Slots': 'moe.routing',
  'SoftMoE': 'moe.layer',
  'SoftRouter': 'moe.routers.soft',
  'Threshold': 'moe.routers.threshold',
  'TokensChoice': 'moe.routers.tokens_choice',
  'grouped_matmul': 'moe.execution.grouped_matmul',
}

__all__ = [
  'Assignment',
  'Aux',
  'BiasBalanced',
  'Experts',
  'ExpertsChoice',
  'HashRouter',
  'IdentityRouter',
  'MixtureOfTokens',
  'Mlp',
  'MoE',
  'ReLURouter',
  'Slots',
  'SoftMoE',
  'SoftRouter',
  'Threshold',
  'TokensChoice',
  'grouped_matmul',
]


def __getattr__(name: str) -> Any:
  # Imported on first use: the launcher must run before JAX is imported.
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'softmoe.{_HOMES[name]}')
  return getattr(module, name)
