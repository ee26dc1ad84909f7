"""Evaluation of a run from its directory alone."""

import dataclasses
import pathlib
from typing import Any

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.evaluation import classification
from softmoe.runs import checkpoint
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib


def evaluate_workdir(
  workdir: str | pathlib.Path,
  *,
  step: str = 'latest',
  split: str = '',
  mesh: str = 'data:-1',
) -> dict[str, Any]:
  """Returns the metrics of one checkpoint on one split.

  Args:
    workdir: directory of a run, finished or not.
    step: 'latest', 'best' or a number.
    split: any split of the run's source; empty: its `eval_split`.
    mesh: where to evaluate; the checkpoint may be from any other mesh.

  Returns:
    'step', 'split', 'loss', 'accuracy' and 'examples'.

  Raises:
    UserError: there is no such run, checkpoint or split.
  """
  workdir = pathlib.Path(workdir).expanduser()
  config = workdir_lib.read_config(workdir)
  if not (workdir / 'checkpoints').exists():
    raise UserError('--workdir', str(workdir), 'a run with a checkpoint')
  experiment = experiment_lib.build(dataclasses.replace(config, mesh=mesh))
  split = split or config.data.eval_split
  evaluate = classification.make_evaluator(experiment, split)
  with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
    number = _find(checkpoints, step)
    params = state_lib.restore_evaluated(experiment, checkpoints, number)
  return {'step': number, 'split': split} | evaluate(params)


def _find(checkpoints: checkpoint.Checkpoints, step: str) -> int:
  """Returns the number of the checkpoint that `step` names."""
  named = {'latest': checkpoints.latest, 'best': checkpoints.best}
  if step not in named and not step.isdecimal():
    raise UserError('--step', step, "'latest', 'best' or a number")
  number = int(step) if step.isdecimal() else named[step]()
  if number is None:
    raise UserError(
      '--step', step, f'a checkpoint that is there: {checkpoints.steps()}'
    )
  return number
