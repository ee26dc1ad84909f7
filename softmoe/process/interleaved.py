"""Fair timing of several programs."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def seconds(
  programs: Mapping[Any, Callable[[], Any]], rounds: int
) -> dict[Any, list[float]]:
  """Returns the seconds of every call, one of each program in turn.

  What disturbs the machine for a while so disturbs them all. The first round,
  which compiles, does not count.
  """
  found = {name: [] for name in programs}
  for i in range(rounds + 1):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program())
      if i:
        found[name].append(time.perf_counter() - start)
  return found
