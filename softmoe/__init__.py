"""Soft MoE and its peers in JAX/Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from softmoe.moe.bias_balanced import BiasBalanced
  from softmoe.moe.experts import Experts
  from softmoe.moe.experts_choice import ExpertsChoice
  from softmoe.moe.grouped_matmul import grouped_matmul
  from softmoe.moe.hashing import HashRouter
  from softmoe.moe.layer import MoE, SoftMoE
  from softmoe.moe.mixture_of_tokens import MixtureOfTokens
  from softmoe.moe.mlp import Mlp
  from softmoe.moe.relu import ReLURouter
  from softmoe.moe.routing import Assignment, Aux, Slots
  from softmoe.moe.soft import IdentityRouter, SoftRouter
  from softmoe.moe.threshold import Threshold
  from softmoe.moe.tokens_choice import TokensChoice

_HOMES = {
  'Assignment': 'routing',
  'Aux': 'routing',
  'BiasBalanced': 'bias_balanced',
  'Experts': 'experts',
  'ExpertsChoice': 'experts_choice',
  'HashRouter': 'hashing',
  'IdentityRouter': 'soft',
  'MixtureOfTokens': 'mixture_of_tokens',
  'Mlp': 'mlp',
  'MoE': 'layer',
  'ReLURouter': 'relu',
  'Slots': 'routing',
  'SoftMoE': 'layer',
  'SoftRouter': 'soft',
  'Threshold': 'threshold',
  'TokensChoice': 'tokens_choice',
  'grouped_matmul': 'grouped_matmul',
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
  module = importlib.import_module(f'softmoe.moe.{_HOMES[name]}')
  return getattr(module, name)
