"""A training that two suites ask for is done once.

A baseline is often a run of several suites. Where another suite has finished
one with the same config, its result is taken: a copy in this suite's folder
that says whose it is.
"""

import pathlib
from typing import Any

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.runs import workdir as workdir_lib
from softmoe.tables import folders as folders_lib
from softmoe.tables import suite as suite_lib


def take(
  suite: suite_lib.Suite, run: suite_lib.Run, folders: folders_lib.Folders
) -> str:
  """Copies the result of another suite, if one has done this missing run.

  A suite with evaluators takes none: a result does not say with which options
  they were called.

  Args:
    suite: that lacks it.
    run: of that suite.
    folders: of that suite.

  Returns:
    SUITE/RUN that was trained; empty: there is none, or the run of this suite
    is finished or in use.
  """
  if suite.evaluators or folders.result(run.name).exists():
    return ''
  source = _find(suite, run, folders)
  log = source and folders.lock(run.name)
  if not source or not log:
    return ''
  with log:
    target = folders.result(run.name)
    if target.exists():  # by another runner, until now
      return ''
    target.parent.mkdir(parents=True, exist_ok=True)
    record = _record(suite, run, folders, source)
    workdir_lib.write_json(target, record)
  return record['taken_from']


def _find(
  suite: suite_lib.Suite, run: suite_lib.Run, folders: folders_lib.Folders
) -> pathlib.Path | None:
  """Returns the first result of another suite that says all that is asked."""
  try:
    config = run.load_config()
  except UserError:
    return None  # the runner says so
  for path in sorted(folders.results.glob(f'*/*-seed{run.seed}.json')):
    is_other = path.parent.name != folders.suite
    if is_other and _is_same(path, config, suite.splits):
      return path
  return None


def _is_same(
  path: pathlib.Path, config: config_lib.Config, splits: tuple[str, ...]
) -> bool:
  """Tells whether a result is of this config, and of these splits at least."""
  try:
    folders_lib.check(path, config)
  except UserError:
    return False
  value = folders_lib.read(path)
  # `check` lets the data lie elsewhere, as it may on another machine.
  if experiment_lib.parse(value['config']).data.source != config.data.source:
    return False
  measured = {name.partition('/')[0] for name in value.get('metrics', {})}
  return set(splits) <= measured


def _record(
  suite: suite_lib.Suite,
  run: suite_lib.Run,
  folders: folders_lib.Folders,
  source: pathlib.Path,
) -> dict[str, Any]:
  """Returns the result under the names of this suite, with its splits alone."""
  was = folders_lib.read(source)
  metrics = {
    name: value
    for name, value in was['metrics'].items()
    if name.partition('/')[0] in suite.splits
  }
  return was | {
    'suite': folders.suite,
    'run': run.name,
    'model': run.model,
    'sweep': dict(run.sweep),
    'metrics': metrics,
    'taken_from': was.get('taken_from') or f'{was["suite"]}/{source.stem}',
  }
