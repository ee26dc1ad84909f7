"""How often a run was started and lost again, without a step gained.

A job that loses a process is put in the queue again, and what took the process
may be there the next time too.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator

import jax

from softmoe.errors import STOPPED, GaveUp
from softmoe.process import peers
from softmoe.runs import workdir as workdir_lib

MOST = 3  # starts in a row at one step


@contextlib.contextmanager
def counting(workdir: pathlib.Path, step: int) -> Iterator[int]:
  """Counts this start as lost, unless it is left in whatever other way.

  Process 0 does, in a hidden file, which a lost process has no time to write:
  it is there from the start on, and goes when the start is not lost. A process
  without others cannot lose one, and counts nothing.

  Args:
    workdir: the directory of the run.
    step: the step of the checkpoint that the run goes on from, 0 without one.

  Yields:
    `step`.

  Raises:
    GaveUp: `MOST` starts in a row at this step were lost. The count begins
      anew.
  """
  if jax.process_count() == 1 or jax.process_index() > 0:
    yield step
    return
  path = workdir / '.restarts.json'
  starts = _lost(path, step)
  if starts >= MOST:
    path.unlink()
    raise GaveUp(starts, step)
  workdir_lib.write_json(path, {'step': step, 'starts': starts + 1})

  def forget(code: int) -> None:
    if code != STOPPED:
      path.unlink(missing_ok=True)

  with peers.telling_end(forget):
    try:
      yield step
    finally:
      path.unlink(missing_ok=True)


def _lost(path: pathlib.Path, step: int) -> int:
  """Returns how many starts at `step` were lost."""
  if not path.exists():
    return 0
  last = json.loads(path.read_text())
  return last['starts'] if last['step'] == step else 0
