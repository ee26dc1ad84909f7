"""What the benchmarks share: fair timing, and where it was done."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jaxlib

from softmoe.process import origin


def interleaved(
  functions: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
  """Returns the seconds of the best call of each, one of each in turn.

  What disturbs the machine for a while so disturbs them all. The first round,
  which compiles, does not count.
  """
  best = dict.fromkeys(functions, float('inf'))
  for i in range(rounds + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      seconds = time.perf_counter() - start
      if i:
        best[name] = min(best[name], seconds)
  return best


def where() -> str:
  """Returns machine, versions and commit, in one line."""
  versions = {'jaxlib': jaxlib.__version__} | origin.versions()
  told = ', '.join(f'{name} {value}' for name, value in versions.items())
  devices = f'{jax.default_backend()} x {jax.device_count()}'
  return (
    f'{origin.machine()}, {devices}; {told};'
    f' commit {origin.commit() or "unknown"}'
  )
