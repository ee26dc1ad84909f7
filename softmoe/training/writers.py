"""Metrics of a run, as JSON lines and as TensorBoard events."""

import json
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import record_writer
from tensorboardX.proto import event_pb2, summary_pb2

from softmoe.runs import disk

FILE_NAME = 'metrics.jsonl'

# Their classes are made at run time, which no type checker sees.
_event: Any = event_pb2
_summary_proto: Any = summary_pb2


class MetricWriter:
  """Appends scalars to `workdir/metrics.jsonl` and to TensorBoard events.

  A line is one JSON object: `{"step": 100, "train/loss": 0.5}`. JSON has no
  word for numbers that are not finite: they are written as the strings "NaN",
  "Infinity" and "-Infinity", which Python's `float` reads back.

  Both files are written by whoever calls, so that it learns if one cannot be.
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

    Raises:
      WriteFailed: the disk is full, or the directory is gone.
    """
    self._lines = self._events = None
    if not enabled:
      return
    path = pathlib.Path(workdir) / FILE_NAME
    with disk.writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
    if resume_step is not None:
      _drop_after(path, resume_step)
    self._lines = disk.Log(path)
    self._events = disk.Log(path.with_name(_events_name()))
    self._events.write(_record(file_version='brain.Event:2'))
    if resume_step is not None:
      start = _event.SessionLog(status=_event.SessionLog.START)
      self._events.write(_record(step=resume_step + 1, session_log=start))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one line; the values are numbers or scalar arrays.

    Raises:
      WriteFailed: the disk is full.
    """
    if self._lines is None or self._events is None:
      return
    values = {name: float(value) for name, value in scalars.items()}
    row = {'step': int(step)} | {k: _finite(v) for k, v in values.items()}
    self._lines.write((json.dumps(row, allow_nan=False) + '\n').encode())
    self._events.write(_record(step=int(step), summary=_summary(values)))

  def sync(self) -> None:
    """Waits until all that was written is on disk.

    Raises:
      WriteFailed: it cannot be brought there.
    """
    for file in (self._lines, self._events):
      if file is not None:
        file.sync()

  def close(self) -> None:
    """Closes both files."""
    for file in (self._lines, self._events):
      if file is not None:
        file.close()
    self._lines = self._events = None


def _finite(value: float) -> float | str:
  if math.isfinite(value):
    return value
  return 'NaN' if math.isnan(value) else f'{"-" if value < 0 else ""}Infinity'


def _drop_after(path: pathlib.Path, last_step: int) -> None:
  """Rewrites the file without torn lines and lines after `last_step`."""
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  kept = [line for line in lines if _step_of(line) <= last_step]
  disk.write(path, b''.join(kept))


def _step_of(line: bytes) -> float:
  """Returns the step of a line, or infinity if the line is torn."""
  try:
    return float(json.loads(line)['step']) if line[-1:] == b'\n' else math.inf
  except (ValueError, KeyError, TypeError):
    return math.inf


def _events_name() -> str:
  """Returns a name by which TensorBoard finds the file, and in order."""
  return f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'


def _summary(values: Mapping[str, float]) -> Any:
  one = _summary_proto.Summary.Value
  return _summary_proto.Summary(
    value=[one(tag=name, simple_value=value) for name, value in values.items()]
  )


def _record(**fields: Any) -> bytes:
  """Returns an event as a TFRecord: length and content, each with its CRC."""
  data = _event.Event(wall_time=time.time(), **fields).SerializeToString()
  length = struct.pack('<Q', len(data))
  checksum = lambda part: struct.pack('<I', record_writer.masked_crc32c(part))
  return length + checksum(length) + data + checksum(data)
