"""Soft MoE and its peers in JAX/Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from softmoe.moe.layer import SoftMoE

_HOMES = {'SoftMoE': 'softmoe.moe.layer'}

__all__ = ['SoftMoE']


def __getattr__(name: str) -> Any:
  # Imported on first use: the launcher must run before JAX is imported.
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOMES[name]), name)
