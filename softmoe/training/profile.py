"""A trace of some steps, for the profiler of TensorBoard and for `tables`."""

import contextlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from softmoe.runs import disk


class Profile:
  """Writes into `workdir/profile` where the time of some steps goes.

  Beside the trace, which names instructions, `train_step.txt` is the compiled
  program, which says what part of the model each of them is of, and
  `steps.json` how many steps there are: fewer than asked for, where the run
  was stopped or went on among them.
  """

  def __init__(
    self,
    steps: tuple[int, ...],
    workdir: pathlib.Path,
    pause: Callable[[], contextlib.AbstractContextManager[None]],
  ):
    """Does nothing yet.

    Args:
      steps: the first and the last; empty: none.
      workdir: of the run.
      pause: returns what stops the clock of the training speed.
    """
    self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
    self._pause = pause
    self._folder, self._running, self._number = workdir / 'profile', False, 0

  def before(self, step: int, train_step: Any, *arguments: Any) -> None:
    """Starts the trace, if this is the first of its steps that is trained."""
    if self._running or step not in self._steps:
      return
    # Nothing that came before runs on into the trace, or behind the clock.
    jax.block_until_ready(arguments)
    with self._pause():
      program = train_step.lower(*arguments).compile().as_text()
      if jax.process_index() == 0:
        self._folder.mkdir(exist_ok=True)
        disk.write(self._folder / 'train_step.txt', program.encode())
      jax.profiler.start_trace(self._folder)
    self._running = True

  def after(self, step: int, results: Any) -> None:
    """Counts a step, and ends the trace if it is the last."""
    self._number += self._running
    if self._running and step == self._steps[-1]:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Ends the trace, whatever step it is."""
    if not self._running:
      return
    self._running = False
    with self._pause():
      jax.profiler.stop_trace()
      if jax.process_index() == 0:
        number = json.dumps(self._number)
        disk.write(self._folder / 'steps.json', number.encode())
