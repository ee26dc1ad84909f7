"""A run's model, from its directory alone."""

import dataclasses
import os
from typing import Any, NamedTuple

from flax import nnx

from softmoe import experiment as experiment_lib
from softmoe.errors import naming
from softmoe.runs import state
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

  Its mesh, over all devices, stays in force. Attention that this platform
  does not have is 'plain'.

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
  names = {'step': '--step'} | ({'config.mesh': '--mesh'} if mesh else {})
  with (
    naming(names),
    workdir_lib.find_checkpoint(workdir, step) as (config, number, saved),
  ):
    config = dataclasses.replace(config, mesh=mesh)
    experiment = experiment_lib.build(config, training=False)
    params = state.restore_evaluated(experiment, saved, number)
  return Restored(experiment, number, params)
