"""Metrics of a run, as JSON lines and as TensorBoard events."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorboardX

FILE_NAME = 'metrics.jsonl'


class MetricWriter:
  """Appends scalars to `workdir/metrics.jsonl` and to TensorBoard events.

  A line is one JSON object: `{"step": 100, "train/loss": 0.5}`. JSON has no
  word for numbers that are not finite: they are written as the strings "NaN",
  "Infinity" and "-Infinity", which Python's `float` reads back.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    resume_step: int | None = None,
    enabled: bool = True,
  ):
    """Opens both files for appending.

    Args:
      workdir: a local directory; made if it does not exist.
      resume_step: the run goes on after this step: what an earlier process
        wrote about later ones is dropped. None: nothing is.
      enabled: whether to write at all; only one process of a run should.
    """
    self._lines = self._events = None
    if not enabled:
      return
    path = pathlib.Path(workdir) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    if resume_step is not None and path.exists():
      _drop_after(path, resume_step)
    self._lines = path.open('a')
    purge = None if resume_step is None else resume_step + 1
    self._events = tensorboardX.SummaryWriter(
      str(path.parent), purge_step=purge
    )

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one line; the values are numbers or scalar arrays."""
    if self._lines is None or self._events is None:
      return
    values = {name: float(value) for name, value in scalars.items()}
    row = {'step': int(step)} | {k: _finite(v) for k, v in values.items()}
    self._lines.write(json.dumps(row, allow_nan=False) + '\n')
    self._lines.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def flush(self) -> None:
    """Asks for pending events to be written; lines always are at once."""
    if self._events is not None:
      self._events.flush()

  def close(self) -> None:
    """Flushes and closes both files."""
    if self._lines is not None and self._events is not None:
      self._lines.close()
      self._events.close()
      self._lines = self._events = None


def _finite(value: float) -> float | str:
  if math.isfinite(value):
    return value
  return 'NaN' if math.isnan(value) else f'{"-" if value < 0 else ""}Infinity'


def _drop_after(path: pathlib.Path, last_step: int) -> None:
  """Rewrites the file without torn lines and lines after `last_step`."""
  lines = path.read_text().splitlines(keepends=True)
  kept = [line for line in lines if _step_of(line) <= last_step]
  temporary = path.with_suffix('.tmp')
  with temporary.open('w') as f:
    f.writelines(kept)
    f.flush()
    os.fsync(f.fileno())
  temporary.replace(path)


def _step_of(line: str) -> float:
  """Returns the step of a line, or infinity if the line is torn."""
  try:
    return float(json.loads(line)['step']) if line[-1:] == '\n' else math.inf
  except (ValueError, KeyError, TypeError):
    return math.inf
