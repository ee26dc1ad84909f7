"""Which parameters a model is timed with."""

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.runs import load
from softmoe.tables import timing


@pytest.mark.slow  # trains, unless another test of the process did
def test_a_model_is_as_its_run_left_it(finished, one_device, tmp_path):
  workdir, config, _ = finished
  experiment = experiment_lib.build(config)
  trained, state = timing._state(experiment, workdir)
  assert trained and state['step'] == config.steps
  _, _, params = load.restore(workdir)
  jax.tree.map(np.testing.assert_array_equal, state['params'], params)
  trained, state = timing._state(experiment, tmp_path / 'none')
  assert not trained and state['step'] == 0
  programs = timing._programs(experiment, state)
  for kind in ('inference', 'train_step', 'train_step', 'inference'):
    assert jax.tree.leaves(programs[kind]())
