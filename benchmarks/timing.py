"""What the benchmarks share: fair timing, and where it was done."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jaxlib

from softmoe.process import interleaved as fair
from softmoe.process import origin


def interleaved(
  functions: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
  """Returns the seconds of the best call of each, one of each in turn."""
  found = fair.seconds(functions, rounds)
  return {name: min(seconds) for name, seconds in found.items()}


def where() -> str:
  """Returns machine, versions and commit, in one line."""
  versions = {'jaxlib': jaxlib.__version__} | origin.versions()
  told = ', '.join(f'{name} {value}' for name, value in versions.items())
  devices = f'{jax.default_backend()} x {jax.device_count()}'
  return (
    f'{origin.machine()}, {devices}; {told};'
    f' commit {origin.commit() or "unknown"}'
  )
