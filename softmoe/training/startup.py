"""What a process does until its first step, and how long each part takes."""

import os
import pathlib
import time


class Startup:
  """Adds up the seconds since the process began, by part.

  A process that replaced itself (`launch.keep_heap`) began when the first did.
  """

  def __init__(self, began: float | None = None):
    """Starts with what came before.

    Args:
      began: when the process did, in `time.monotonic` seconds; None: as the
        system says.
    """
    self._last = self._began = _began() if began is None else began
    self._seconds: dict[str, float] = {}

  def done(self, part: str) -> None:
    """Counts the time since the last part for this one."""
    now = time.monotonic()
    self._seconds[part] = now - self._last
    self._last = now

  def text(self) -> str:
    """Returns the parts in their order, in seconds."""
    parts = ', '.join(f'{k} {v:.1f}' for k, v in self._seconds.items())
    return f'first step after {self._last - self._began:.1f} s: {parts}'


def _began() -> float:
  """Returns when this process began; now, where the system does not say."""
  now = time.monotonic()
  try:
    # The fields after the name, which may hold anything, in brackets.
    fields = pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2]
    ticks = int(fields.split()[19])
    up = float(pathlib.Path('/proc/uptime').read_text().split()[0])
  except (OSError, ValueError, IndexError):
    return now
  return now - up + ticks / os.sysconf('SC_CLK_TCK')
