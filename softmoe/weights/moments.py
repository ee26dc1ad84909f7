"""What an optimizer remembers of another run: `config.init_moments`.

Sparse upcycling of vision models went on with the dense model's optimizer
state (Komatsuzaki et al., 2023, https://arxiv.org/abs/2212.05055, section 3):
the moments of an expert are copies of the MLP's, as its weights are. What is
new, such as a router, starts without any.
"""

from typing import Any

import jax
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.optim import memory, optimizer
from softmoe.runs import state as state_lib
from softmoe.weights import source as source_lib
from softmoe.weights.adoption import Adoption

_FIELD = 'config.init_moments'


def read(
  experiment: experiment_lib.Experiment, source: source_lib.Source
) -> dict[str, Any]:
  """Returns trees like the parameters, by what the optimizer calls them.

  Each is fitted to the model as the parameters are, and lies where they do.

  Args:
    experiment: that starts.
    source: of its parameters, which fit.

  Raises:
    UserError: it is no run of such an optimizer and of the same task.
  """
  config = experiment.config
  if source.kind == 'a file' or source.branch:
    expected = f'False: no run of {config.task!r}, and so no moments of it'
    raise UserError(_FIELD, True, expected)
  zeros = lambda: jax.tree.map(jnp.zeros_like, experiment.init_params())
  way = Adoption(experiment, source, zeros, upcycling=None)
  own = state_lib.abstract(experiment)['opt_state']
  wanted = memory.moments(config.optimizer, own)
  saved = _saved(experiment, source)
  return {name: way.read(saved.pop(name), wanted[name]) for name in wanted}


def _saved(
  experiment: experiment_lib.Experiment, source: source_lib.Source
) -> dict[str, Any]:
  """Returns the moments of the run that `config.init` names."""
  config = experiment.config
  with source_lib.checkpoint(config.init) as found:
    other = found.config.optimizer
    if memory.NAMES.get(other.name) != memory.NAMES[config.optimizer.name]:
      expected = f'False: {config.init} was trained by {other.name!r}'
      raise UserError(_FIELD, True, expected)
    exchanged, take = source.exchange(source.saved), source.task.take
    made = optimizer.make_optimizer(other, lambda _: 0.0, exchanged, take=take)
    shapes = jax.eval_shape(made.init, source.saved)
    # Counts have no place yet.
    whole = jax.NamedSharding(experiment.mesh, jax.P())
    placed = jax.tree.map(
      lambda x: x.update(sharding=x.sharding or whole), shapes
    )
    state = source_lib.restore(config.init, found, placed, 'opt_state')
  return memory.moments(other, state)
