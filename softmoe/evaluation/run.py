"""Evaluation of a run from its directory alone."""

import pathlib
from typing import Any

from softmoe import experiment as experiment_lib
from softmoe.errors import naming
from softmoe.runs import load


def evaluate_workdir(
  workdir: str | pathlib.Path,
  *,
  step: str = 'latest',
  split: str = '',
  mesh: str = '',
) -> dict[str, Any]:
  """Returns the metrics of one checkpoint on one split.

  Args:
    workdir: directory of a run, finished or not.
    step: 'latest', 'best' or a number.
    split: any split of the run's source; empty: its `eval_split`.
    mesh: where to evaluate, as in a config; the checkpoint may be from any
      other mesh.

  Returns:
    'step', 'split', and what the evaluators of the task say.

  Raises:
    UserError: there is no such run, checkpoint or split, or the data is no
      longer what the run read.
  """
  experiment, number, params = load.restore(workdir, step, mesh)
  experiment_lib.with_fingerprint(experiment.config)
  split = split or experiment.config.data.eval_split
  with naming({'split': '--split'}):
    metrics = experiment.evaluate(params, split)
  notes = {'notes': found} if (found := experiment.task.notes()) else {}
  return {'step': number, 'split': split} | metrics | notes
