"""Where a suite keeps things.

`results/SUITE/RUN.json` is what a finished run leaves for tables; it is never
overwritten. `runs/SUITE/RUN` is its workdir. `runs/SUITE/RUN.log` is what its
starts printed, and whoever works on the run holds a lock on that file, which
goes with the process.
"""

import dataclasses
import json
import pathlib
from typing import IO, Any

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.runs import lock
from softmoe.runs import workdir as workdir_lib

# Where the data lies on a machine, and what it is: `data` of a result says so.
_DATA = ('data.source', 'data.fingerprint')


@dataclasses.dataclass(frozen=True)
class Folders:
  """The folders of one suite.

  Attributes:
    suite: its name.
    results: of all suites.
    runs: of all suites.
  """

  suite: str
  results: pathlib.Path
  runs: pathlib.Path

  def result(self, run: str) -> pathlib.Path:
    """Returns the file of a finished run."""
    return self.results / self.suite / f'{run}.json'

  def workdir(self, run: str) -> pathlib.Path:
    """Returns the directory of a run."""
    return self.runs / self.suite / run

  def log(self, run: str) -> pathlib.Path:
    """Returns what a run printed."""
    return self.runs / self.suite / f'{run}.log'

  def lock(self, run: str) -> IO[str] | None:
    """Returns the log, open at its end and locked; None: another has it.

    The lock lasts until the file is closed here and in all processes that
    inherited it.
    """
    path = self.log(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    return lock.take(path)

  def times(self) -> pathlib.Path:
    """Returns the file of what `time` measured."""
    return self.results / self.suite / 'times.json'


def in_use(runs: pathlib.Path) -> list[str]:
  """Returns SUITE/RUN of every run that is being worked on."""
  return [
    f'{path.parent.name}/{path.stem}'
    for path in sorted(runs.glob('*/*.log'))
    if lock.is_taken(path)
  ]


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the content of a JSON file.

  Raises:
    UserError: it is half-written, or not of the suite whose folder it is in.
  """
  try:
    value = json.loads(path.read_text())
    suite = value['suite']
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise _foreign(path, f'{type(e).__name__}: {e}') from e
  if suite != path.parent.name:
    raise _foreign(path, f'suite {suite!r}')
  return value


def check(path: pathlib.Path, config: config_lib.Config) -> None:
  """Raises a UserError if a finished run is not of this config.

  Args:
    path: of the result.
    config: as the suite has it now.
  """
  value = read(path)
  was = value.get('config')
  if value.get('run') != path.stem or not isinstance(was, dict):
    raise _foreign(path, 'another run')
  try:
    old = experiment_lib.parse(was)
  except UserError as e:
    raise _foreign(path, str(e)) from e
  if type(old) is not type(config):
    raise _foreign(path, old.task)
  for field, (was, now) in workdir_lib.changes(old, config).items():
    if field not in _DATA:
      raise _foreign(path, f'config.{field}={was!r}, in the suite {now!r}')


def _foreign(path: pathlib.Path, given: str) -> UserError:
  return UserError(
    str(path), given, 'what this suite writes there; it stays: move it away'
  )
