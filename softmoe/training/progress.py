"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import contextlib
import datetime
import io
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Progress:
  """Tells a person how far a run is, how fast it goes and when it will end.

  The clock starts at the first `update`, so that compilation is not counted,
  and stands still inside `pause`.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int,
    units_per_step: int,
    unit: str,
    stream: io.TextIOBase | None = None,
    enabled: bool = True,
  ):
    """Prints nothing yet.

    Args:
      total_steps: the step at which the run ends.
      start_step: the step at which it starts; above 0 after a resume.
      units_per_step: of the global batch.
      unit: what speed is counted in.
      stream: where to print; None: standard error.
      enabled: whether to print at all; only one process of a run should.
    """
    self._total_steps = total_steps
    self._step = self._first_step = start_step
    self._units_per_step, self._unit = units_per_step, unit
    self._stream = stream or sys.stderr
    self._enabled = enabled
    self._terminal = self._stream.isatty()
    self._line = ''
    self._start = None  # time of the first update
    self._paused = 0.0  # seconds since then inside `pause`
    self._elapsed = 0.0  # seconds from there to the last update, pauses aside

  @property
  def units_per_second(self) -> float:
    """Over all steps after the first update, pauses excluded; 0: unknown."""
    units = (self._step - self._first_step) * self._units_per_step
    return units / self._elapsed if self._elapsed > 0 else 0.0

  def update(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Shows that `step` steps are done, and the metrics of the last one."""
    now = time.perf_counter()
    if self._start is None:
      self._start, self._first_step, self._paused = now, step, 0.0
    self._step, self._elapsed = step, now - self._start - self._paused
    texts = [f'{name} {float(value):.4g}' for name, value in metrics.items()]
    self._line = '  '.join([self._position(), *texts, *self._speed()])
    if self._terminal:
      self._draw()
    else:
      self._write(self._line + '\n')

  def message(self, text: str) -> None:
    """Prints a line of its own, above the bar."""
    self._write(('\r\x1b[K' if self._terminal else '') + text + '\n')
    self._draw()

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Stops the clock, for an evaluation or whatever else is not training."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._paused += time.perf_counter() - start

  def close(self) -> None:
    """Leaves the bar behind; later output starts on a line of its own."""
    if self._terminal and self._line:
      self._write('\n')
    self._line = ''

  def _position(self) -> str:
    total = self._total_steps
    text = f'step {self._step:{len(str(total))}}/{total}'
    if not self._terminal:
      return text
    done = round(20 * self._step / max(total, 1))
    return f'[{"#" * done:.<20}]  {text}'

  def _speed(self) -> list[str]:
    rate = self.units_per_second
    if not rate:
      return []
    seconds = (self._total_steps - self._step) * self._units_per_step / rate
    eta = datetime.timedelta(seconds=round(seconds))
    return [f'{self._unit}s/s {rate:.{0 if rate >= 10 else 2}f}', f'ETA {eta}']

  def _draw(self) -> None:
    if self._terminal and self._line:
      width = shutil.get_terminal_size().columns - 1
      self._write(f'\r\x1b[K{self._line[:width]}')

  def _write(self, text: str) -> None:
    if self._enabled:
      self._stream.write(text)
      self._stream.flush()
