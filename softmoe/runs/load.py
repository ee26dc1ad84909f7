"""A run's model, from its directory alone."""

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

from flax import nnx

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.runs import checkpoint, state
from softmoe.runs import workdir as workdir_lib


class Restored(NamedTuple):
  """What one checkpoint of a run holds.

  Attributes:
    experiment: built from the run's config; its mesh is in force.
    step: number of the checkpoint.
    params: those that are evaluated: the average, if the run keeps one.
  """

  experiment: experiment_lib.Experiment
  step: int
  params: experiment_lib.Params


def load(
  workdir: str | os.PathLike, step: str | int = 'latest', *, mesh: str = ''
) -> Any:
  """Returns the trained model of a run, ready to be called.

  Its mesh, over all devices, stays in force.

  Args:
    workdir: directory of a run, finished or not.
    step: 'latest', 'best' or a number.
    mesh: as in a config; the run may have had any other.

  Raises:
    UserError: there is no such run or checkpoint.
  """
  experiment, _, params = restore(workdir, step, mesh)
  return nnx.merge(experiment.graphdef, params)


def restore(
  workdir: str | os.PathLike, step: str | int = 'latest', mesh: str = ''
) -> Restored:
  """Returns the parameters of a run, beside the experiment that they are of.

  Raises:
    UserError: as `load`.
  """
  workdir = pathlib.Path(workdir).expanduser()
  config = workdir_lib.read_config(workdir)
  if not (workdir / 'checkpoints').exists():
    raise UserError('--workdir', str(workdir), 'a run with a checkpoint')
  experiment = experiment_lib.build(dataclasses.replace(config, mesh=mesh))
  with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
    number = _find(checkpoints, step)
    params = state.restore_evaluated(experiment, checkpoints, number)
  return Restored(experiment, number, params)


def _find(checkpoints: checkpoint.Checkpoints, step: str | int) -> int:
  """Returns the number of the checkpoint that `step` names."""
  named = {'latest': checkpoints.latest, 'best': checkpoints.best}
  name = str(step)
  if name not in named and not name.isdecimal():
    raise UserError('--step', step, "'latest', 'best' or a number")
  number = int(name) if name.isdecimal() else named[name]()
  if number is None:
    raise UserError(
      '--step', step, f'a checkpoint that is there: {checkpoints.steps()}'
    )
  return number
