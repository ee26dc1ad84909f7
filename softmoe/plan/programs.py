"""The programs of a config: its training step and its inference step."""

from typing import Any

import jax
from flax import nnx

from softmoe import experiment as experiment_lib
from softmoe.runs import state as state_lib
from softmoe.training import step as step_lib

TRAIN, INFERENCE = 'train', 'inference'


def trace(experiment: experiment_lib.Experiment, program: str) -> Any:
  """Returns the traced program, which can be lowered for the mesh's devices.

  Args:
    experiment: built on the target's devices.
    program: TRAIN, the step of the training loop with its batch size, or
      INFERENCE, the task's `infer` with the evaluation's batch size.
  """
  function, arguments = _PROGRAMS[program](experiment)
  return function.trace(*arguments)


def batch_size(experiment: experiment_lib.Experiment, program: str) -> int:
  """Returns the number of examples in a step of a program."""
  data = experiment.config.data
  return data.batch_size if program == TRAIN else data.eval_batch_size


def _train(experiment: experiment_lib.Experiment) -> tuple[Any, tuple]:
  step = step_lib.make_train_step(experiment)
  batch = experiment.abstract_batch(batch_size(experiment, TRAIN))
  return step, (state_lib.abstract(experiment), batch)


def _inference(experiment: experiment_lib.Experiment) -> tuple[Any, tuple]:
  def infer(params, batch):
    model = nnx.merge(experiment.graphdef, params)
    return experiment.task.infer(model, batch)

  batch = experiment.abstract_batch(batch_size(experiment, INFERENCE))
  return jax.jit(infer), (experiment.abstract_params, batch)


_PROGRAMS = {TRAIN: _train, INFERENCE: _inference}
