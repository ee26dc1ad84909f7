"""How far a suite is: a page on a terminal, plain lines elsewhere."""

import collections
import datetime
import io
import json
import os
import pathlib
import shutil
import sys
import time
from typing import Any

_TAIL = 1 << 16  # bytes of the metrics; more than a line has


class Page:
  """Tells what is done, running and failed, and how much time is left.

  Attributes:
    failed: why, by run.
  """

  def __init__(
    self, title: str, metric: str, stream: io.TextIOBase | None = None
  ):
    """Shows nothing yet.

    Args:
      title: of the suite.
      metric: that is told of a finished run.
      stream: where to print; None: standard error.
    """
    self.failed: dict[str, str] = {}
    self._title, self._metric = title, metric
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._height = 0  # lines of the page that is shown
    self._done = 0
    self._steps: dict[str, int] = {}  # of runs to be done
    self._running: dict[str, pathlib.Path] = {}
    self._since = time.monotonic()
    self._gained = 0.0  # steps of finished runs since then
    self._first = collections.Counter()  # steps before this start

  def found(self, name: str) -> None:
    """Takes note of a run that was finished before."""
    self._steps.pop(name, None)
    self._done += 1

  def expect(self, name: str, steps: int) -> None:
    """Takes note of a run that is to be done."""
    self._steps[name] = steps

  def start(self, name: str, workdir: pathlib.Path) -> None:
    """Takes note of a run that is being done."""
    self._running[name] = workdir
    self._first[name] = last_step(workdir)

  def skip(self, name: str) -> None:
    """Says that another runner has this run."""
    del self._steps[name]
    self._say(f'{name} is in use by another runner: skipped')

  def finish(self, name: str, record: dict[str, Any]) -> None:
    """Says what came out."""
    del self._running[name]
    self._gained += self._steps.pop(name) - self._first[name]
    self._done += 1
    value = record['metrics'].get(self._metric, float('nan'))
    self._say(
      f'done {name}: {self._metric} {value:.4f} in {_time(record["seconds"])}; '
      + self._counts()
    )

  def fail(self, name: str, reason: str) -> None:
    """Says why a run could not be done."""
    self._running.pop(name, None)
    self._steps.pop(name, None)
    self.failed[name] = reason
    self._say(f'failed {name}: {reason}')

  def show(self) -> None:
    """Draws the page, on a terminal."""
    if not self._terminal:
      return
    lines = [f'{self._title}: {self._counts()}']
    for name, workdir in self._running.items():
      lines.append(f'  {name}: step {last_step(workdir)}/{self._steps[name]}')
    width, height = shutil.get_terminal_size()
    self._clear()
    lines = [line[: width - 1] for line in lines[: height - 1]]
    self._write(''.join(line + '\n' for line in lines))
    self._height = len(lines)

  def close(self) -> None:
    """Says how it ended; the page goes."""
    self._clear()
    self._write(f'{self._title}: {self._counts()}\n')

  def _counts(self) -> str:
    waiting = len(self._steps) - len(self._running)
    counts = {
      'done': self._done,
      'running': len(self._running),
      'waiting': waiting,
      'failed': len(self.failed),
    }
    parts = [f'{n} {name}' for name, n in counts.items() if n]
    return ', '.join([*parts, *self._left()])

  def _left(self) -> list[str]:
    """Returns how long the rest takes if it goes on at the speed so far."""
    now = {name: last_step(path) for name, path in self._running.items()}
    gained = sum(max(step - self._first[name], 0) for name, step in now.items())
    left = sum(self._steps.values()) - sum(now.values())
    gained += self._gained
    if left <= 0 or gained <= 0:
      return []
    elapsed = time.monotonic() - self._since
    return [f'{_time(left / gained * elapsed)} left']

  def _say(self, line: str) -> None:
    self._clear()
    self._write(line + '\n')

  def _clear(self) -> None:
    if self._height:
      self._write(f'\x1b[{self._height}F\x1b[J')
    self._height = 0

  def _write(self, text: str) -> None:
    self._stream.write(text)
    self._stream.flush()


def last_step(workdir: pathlib.Path) -> int:
  """Returns the last step that a run wrote metrics of; 0: none yet."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0
  with path.open('rb') as file:
    file.seek(max(path.stat().st_size - _TAIL, 0), os.SEEK_SET)
    lines = file.read().split(b'\n')[:-1]  # the last one may be half-written
  try:
    return json.loads(lines[-1])['step']
  except (IndexError, ValueError):
    return 0


def _time(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
