"""What the benchmarks share: fair timing, and where it was done."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jaxlib


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


def origin() -> str:
  """Returns machine, versions and commit, in one line."""
  commit = subprocess.run(
    ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True
  ).stdout.strip()
  return (
    f'{_processor()}, {os.cpu_count()} cores, {jax.default_backend()} x'
    f' {jax.device_count()}; Python {platform.python_version()},'
    f' jax {jax.__version__}, jaxlib {jaxlib.__version__};'
    f' commit {commit or "unknown"}'
  )


def _processor() -> str:
  try:
    with open('/proc/cpuinfo') as file:
      names = [line for line in file if line.startswith('model name')]
    return names[0].partition(':')[2].strip()
  except (OSError, IndexError):
    return platform.machine()


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns a Markdown table."""
  rule = ['---', *['---:'] * (len(header) - 1)]
  lines = [header, rule, *rows]
  return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)
