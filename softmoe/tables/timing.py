"""How long a training step and an inference of each model of a suite take.

python -m softmoe.tables time SUITE

One program at a time has the whole machine, in turn with all others: what
disturbs the machine for a while so disturbs them all. A model is as its run
left it, if that is there: how many experts tokens want can be learned.
"""

import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.process import arguments, interleaved, launch, origin
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.tables import folders as folders_lib
from softmoe.tables import options as options_lib
from softmoe.tables import suite
from softmoe.training import loop
from softmoe.training import step as step_lib
from softmoe.weights import pretrained


def main(argv: list[str]) -> None:
  """Times the models of the suite that the arguments name."""
  parser = options_lib.suite_parser('time', 'Times each model of a suite.')
  parser.add_argument('--rounds', type=arguments.positive, default=20)
  options = parser.parse_args(argv)
  _, found, folders = options_lib.open_suite(options)
  launch.prepare()
  path = folders.times()
  if path.exists():
    folders_lib.read(path)  # whatever else it is, it stays
  if busy := folders_lib.in_use(folders.runs):
    raise UserError('time', busy, 'no run at the same time')
  times = measure(found, folders, options.rounds)
  path.parent.mkdir(parents=True, exist_ok=True)
  workdir_lib.write_json(path, {'suite': folders.suite} | times)
  _print(times)


def measure(
  found: suite.Suite, folders: folders_lib.Folders, rounds: int
) -> dict[str, Any]:
  """Returns seconds of each model: the median, and the range.

  Args:
    found: the suite; what has another seed alone is one model.
    folders: where its runs are.
    rounds: how often each program is timed.
  """
  variants = {}
  for run in found.runs:
    variants.setdefault(run.variant, run)
  programs, examples, trained = {}, {}, {}
  for name, run in variants.items():
    print(f'compiling {name}', file=sys.stderr)
    config = run.load_config()
    examples[name] = config.data.batch_size
    experiment = experiment_lib.build(config)
    trained[name], state = _state(experiment, folders.workdir(run.name))
    for kind, program in _programs(experiment, state).items():
      programs[name, kind] = program
  seconds = interleaved.seconds(programs, rounds)
  return {
    'machine': origin.machine(),
    'versions': origin.versions(),
    'commit': origin.commit(),
    'rounds': rounds,
    'models': {
      name: {'examples': examples[name], 'trained': trained[name]}
      | _summary('train_step', seconds[name, 'train_step'])
      | _summary('inference', seconds[name, 'inference'])
      for name in variants
    },
  }


def _state(
  experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> tuple[bool, state_lib.TrainState]:
  """Returns whether there is a run, and its last state or a fresh one."""
  if not (workdir / 'checkpoints').exists():
    return False, state_lib.init(experiment)
  with workdir_lib.find_checkpoint(workdir, 'latest') as found:
    return True, state_lib.restore_or_init(
      experiment, found.checkpoints, pretrained.start
    )


def _programs(
  experiment: experiment_lib.Experiment, state: Any
) -> dict[str, Callable[[], Any]]:
  """Returns the step and the inference of a state, with real data."""
  step = step_lib.make_train_step(experiment)
  params = jax.tree.map(jnp.copy, state_lib.evaluated(state))  # it is donated
  batch = next(loop.batches(experiment, 0))
  infer = jax.jit(
    lambda params, batch: experiment.task.infer(
      nnx.merge(experiment.graphdef, params), batch
    )
  )

  def train() -> Any:
    nonlocal state
    jax.set_mesh(experiment.mesh)
    state, metrics = step(state, batch)
    return state, metrics

  def inference() -> Any:
    jax.set_mesh(experiment.mesh)
    return infer(params, batch)

  return {'train_step': train, 'inference': inference}


def _summary(name: str, seconds: list[float]) -> dict[str, Any]:
  return {
    f'{name}_seconds': statistics.median(seconds),
    f'{name}_range': [min(seconds), max(seconds)],
  }


def _print(times: dict[str, Any]) -> None:
  print('| Model | Training step, ms | Inference, ms | Examples | Trained |')
  print('| --- | ---: | ---: | ---: | --- |')
  for name, model in times['models'].items():
    step, inference = (
      f'{1e3 * model[f"{kind}_seconds"]:.1f}'
      for kind in ('train_step', 'inference')
    )
    trained = 'yes' if model['trained'] else 'no'
    examples = model['examples']
    print(f'| {name} | {step} | {inference} | {examples} | {trained} |')
