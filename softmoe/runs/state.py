"""The train state: a plain pytree of arrays, all that a run must remember."""

import functools
from collections.abc import Callable
from typing import Any, TypedDict

import jax
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.optim import memory
from softmoe.runs import checkpoint
from softmoe.runs import workdir as workdir_lib

# Returns parameters, and what the optimizer remembers of them, which may be {}.
Start = Callable[
  [experiment_lib.Experiment], tuple[experiment_lib.Params, dict[str, Any]]
]


class TrainState(TypedDict):
  """What a checkpoint holds.

  Attributes:
    step: int32 scalar, the number of steps done.
    params: the parameters, nested dicts.
    opt_state: the optimizer's state, placed as the parameters are.
    ema: the average of the parameters, or an empty dict.
  """

  step: jax.Array
  params: experiment_lib.Params
  opt_state: Any
  ema: experiment_lib.Params


def init(experiment: experiment_lib.Experiment) -> TrainState:
  """Returns the state at step 0; each device makes its own part of it."""
  # Run once: to optimize the code of so many random numbers takes a CPU longer
  # than to run it as it is.
  on_cpu = experiment.mesh.devices.flat[0].platform == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else None
  return jax.jit(lambda: create(experiment), compiler_options=options)()


def abstract(experiment: experiment_lib.Experiment) -> TrainState:
  """Returns the shapes, types and places of the state, without the arrays."""
  make = functools.partial(create, experiment)
  return sharding.abstract(make, experiment.mesh, experiment.abstract_params)


def restore_or_init(
  experiment: experiment_lib.Experiment,
  checkpoints: checkpoint.Checkpoints,
  start: Start,
) -> TrainState:
  """Returns the newest saved state, or else a fresh one, or that of `init`.

  Args:
    experiment: what is trained.
    checkpoints: of the run.
    start: reads what `config.init` names.

  Raises:
    UserError: the checkpoint, or what `config.init` names, is damaged or of
      another model or optimizer.
  """
  step = checkpoints.latest()
  if step is None and experiment.config.init:
    make = lambda given: create(experiment, *given)
    return jax.jit(make, donate_argnums=0)(start(experiment))
  if step is None:
    return init(experiment)
  with workdir_lib.reading(step, checkpoints):
    return checkpoints.restore(abstract(experiment), step)


def doubts(state: TrainState, step: int) -> list[str]:
  """Returns what in a restored state has not counted to `step`, in words.

  Part of it has been reset then, whatever became of its checkpoint.
  """
  counters = [('step', state['step'])]
  for path, leaf in jax.tree_util.tree_leaves_with_path(state['opt_state']):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.rsplit('/', 1)[-1] == 'count':
      counters.append((f'opt_state/{name}', leaf))
  return [
    f'{name} of checkpoint {step} is {int(count)}: it was reset'
    for name, count in counters
    if int(count) not in (step, step + memory.STEPS_BEFORE)
  ]


def restore_evaluated(
  experiment: experiment_lib.Experiment,
  checkpoints: checkpoint.Checkpoints,
  step: int,
) -> experiment_lib.Params:
  """Returns what `evaluated` would of a saved state, without the rest of it.

  Raises:
    UserError: there is no such checkpoint, or it is damaged or of another
      model.
  """
  key = 'ema' if experiment.config.ema else 'params'
  with workdir_lib.reading(step, checkpoints):
    return checkpoints.restore_params(abstract(experiment)[key], step, key)


def evaluated(state: TrainState) -> experiment_lib.Params:
  """Returns the parameters that are evaluated: the average if there is one."""
  return state['ema'] or state['params']


def create(
  experiment: experiment_lib.Experiment,
  params: experiment_lib.Params | None = None,
  moments: dict[str, Any] | None = None,
) -> TrainState:
  """Returns the state at step 0; to be called under `jax.jit`.

  Args:
    experiment: what is trained.
    params: the parameters; None: fresh ones.
    moments: what the optimizer goes on with (`optim.memory`); empty: nothing.
  """
  config = experiment.config
  params = experiment.init_params() if params is None else params
  opt_state = experiment.optimizer.init(params)
  return {
    'step': jnp.zeros((), jnp.int32),
    'params': params,
    'opt_state': memory.resume(opt_state, moments) if moments else opt_state,
    'ema': jax.tree.map(_as_average, params) if config.ema else {},
  }


def _as_average(w: jax.Array) -> jax.Array:
  # In bfloat16 a decay such as 0.999 would round to 1.
  return jnp.array(w, jnp.float32, copy=True)
