"""The programs of a config: its training step and its inference step."""

from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.runs import state as state_lib
from softmoe.training import step as step_lib

TRAIN, INFERENCE = 'train', 'inference'


def trace(experiment: experiment_lib.Experiment, program: str) -> Any:
  """Returns the traced program, which can be lowered for the mesh's devices.

  Args:
    experiment: built on the target's devices.
    program: TRAIN, the step of the training loop with its batch size, or
      INFERENCE, images to logits with the evaluation's batch size.
  """
  function, arguments = _PROGRAMS[program](experiment)
  return function.trace(*arguments)


def batch_size(experiment: experiment_lib.Experiment, program: str) -> int:
  """Returns the number of images in a step of a program."""
  data = experiment.config.data
  return data.batch_size if program == TRAIN else data.eval_batch_size


def _train(experiment: experiment_lib.Experiment) -> tuple[Any, tuple]:
  step: Any = step_lib.make_train_step(experiment)
  label = _place(experiment, (batch_size(experiment, TRAIN),), jnp.int32)
  batch = {'image': _images(experiment, TRAIN), 'label': label}
  return step, (state_lib.abstract(experiment), batch)


def _inference(experiment: experiment_lib.Experiment) -> tuple[Any, tuple]:
  def infer(params, images):
    return nnx.merge(experiment.graphdef, params)(images)[0]

  images = _images(experiment, INFERENCE)
  return jax.jit(infer), (experiment.abstract_params, images)


_PROGRAMS = {TRAIN: _train, INFERENCE: _inference}


def _images(experiment: experiment_lib.Experiment, program: str) -> Any:
  data = experiment.config.data
  shape = (batch_size(experiment, program), *data.image_size, data.channels)
  return _place(experiment, shape, jnp.float32)


def _place(experiment, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
  mesh = experiment.mesh
  sharding = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
