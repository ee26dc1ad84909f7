"""Soft MoE and its peers in JAX/Flax; `__init__.pyi` lists the public names."""

import ast
import importlib
import pathlib
from typing import Any

_STUB = pathlib.Path(__file__).with_suffix('.pyi').read_text(encoding='utf-8')
_HOMES = {
  alias.name: str(node.module)
  for node in ast.parse(_STUB).body
  if isinstance(node, ast.ImportFrom)
  for alias in node.names
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
  # Imported on first use: the launcher must run before JAX is imported.
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  try:
    return getattr(importlib.import_module(_HOMES[name]), name)
  except ModuleNotFoundError as e:
    needed = f"{__name__}.{name} needs {e.name}: pip install 'softmoe[train]'"
    raise ModuleNotFoundError(needed, name=e.name) from e


def __dir__() -> list[str]:
  return __all__
