"""Runs that are about to start from another."""

import jax
import numpy as np

from softmoe import experiment as experiment_lib
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.weights import pretrained


def build(config):
  """Returns the experiment, on as many devices as its mesh names."""
  sizes = [int(axis.split(':')[1]) for axis in config.mesh.split(',')]
  return experiment_lib.build(config, devices=jax.devices()[: np.prod(sizes)])


def started(config, directory):
  """Returns experiment and state of a run that has no checkpoint yet."""
  experiment = build(config)
  with workdir_lib.open_checkpoints(directory, config) as checkpoints:
    return experiment, state_lib.restore_or_init(
      experiment, checkpoints, pretrained.start
    )
