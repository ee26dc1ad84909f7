"""One run of a suite, in a process of its own, on behalf of a runner.

The runner holds the other end of standard input: it ends with the runner, and
the worker at once with it.
"""

import argparse
import json
import os
import pathlib
import select
import sys
import threading
import time
from typing import Any

from softmoe import config as config_lib
from softmoe.errors import FAILED
from softmoe.process import launch
from softmoe.tables import folders as folders_lib
from softmoe.tables import suite as suite_lib

_BEAT = 5.0  # seconds between two notes of the time


class Clock:
  """How long all starts of a run took together.

  A start that is killed loses what came after its last note.
  """

  def __init__(self, path: pathlib.Path, shared: bool):
    """Goes on from what `path` says of earlier starts.

    Args:
      path: of the notes, in the workdir.
      shared: whether other work runs beside this start.
    """
    self._path, self._start = path, time.monotonic()
    self._before = json.loads(path.read_text()) if path.exists() else {}
    now = time.strftime('%Y-%m-%dT%H:%M:%S')
    self._started = self._before.get('started', now)
    self._shared = shared or self._before.get('shared', False)

  def read(self) -> dict[str, Any]:
    """Returns when the run started, its seconds, and whether it had company."""
    seconds = self._before.get('seconds', 0.0)
    seconds += time.monotonic() - self._start
    return {
      'started': self._started,
      'seconds': round(seconds, 1),
      'shared': self._shared,
    }

  def note(self) -> None:
    """Writes it down, once there is a workdir."""
    if self._path.parent.exists():
      temporary = self._path.with_suffix('.new')
      temporary.write_text(json.dumps(self.read()))
      temporary.replace(self._path)

  def watch(self) -> None:
    """Notes the time again and again, and ends with the runner."""
    while not select.select([sys.stdin], [], [], _BEAT)[0]:
      self.note()
    os._exit(FAILED)


def main(argv: list[str]) -> None:
  """Does the run that the arguments name."""
  parser = argparse.ArgumentParser('softmoe.tables.worker')
  for name in ('suite', 'run', 'results', 'runs'):
    parser.add_argument(name)
  parser.add_argument('--shared', action='store_true')
  options = parser.parse_args(argv)
  path = suite_lib.find(options.suite)
  suite = suite_lib.load(path)
  results, runs = map(pathlib.Path, (options.results, options.runs))
  folders = folders_lib.Folders(path.stem, results, runs)
  run = suite.find(options.run)
  clock = Clock(folders.workdir(run.name) / '.clock.json', options.shared)
  threading.Thread(target=clock.watch, daemon=True).start()
  _work(suite, run, folders, clock)


def _work(
  suite: suite_lib.Suite,
  run: suite_lib.Run,
  folders: folders_lib.Folders,
  clock: Clock,
) -> None:
  """Trains, evaluates, and writes the result if there is none yet."""
  from softmoe.process import origin
  from softmoe.runs import workdir as workdir_lib
  from softmoe.training import loop

  workdir, commit = folders.workdir(run.name), origin.commit()
  config = run.load_config()
  _check(suite, config)
  trained = loop.train(config, workdir)
  times = clock.read()
  record = {
    'suite': folders.suite,
    'run': run.name,
    'model': run.model,
    'sweep': dict(run.sweep),
    'seed': run.seed,
    'command': run.command(workdir),
    'config': config_lib.to_dict(config),
    'commit': commit,
    'versions': origin.versions(),
    'machine': origin.machine(),
    **times,
    'finished': trained['finished'],
    'data': trained.get('data', ''),
    **_measure(suite, workdir),
    'curve': curve(workdir / 'metrics.jsonl'),
  }
  path = folders.result(run.name)
  path.parent.mkdir(parents=True, exist_ok=True)
  workdir_lib.write_json(path, record)


def _check(suite: suite_lib.Suite, config: config_lib.Config) -> None:
  """Raises a UserError before the training if it cannot be evaluated then."""
  import numpy as np

  from softmoe.tasks import registry

  task = registry.find(config.task)(config)
  for split in suite.splits:
    next(task.eval_batches(split, np.arange(1)))
  for name in suite.evaluators:
    config_lib.load('evaluators', name)


def _measure(suite: suite_lib.Suite, workdir: pathlib.Path) -> dict[str, Any]:
  """Returns costs, and metrics of the last checkpoint."""
  from softmoe.runs import load

  experiment, _, params = load.restore(workdir)
  metrics = {
    f'{split}/{name}': value
    for split in suite.splits
    for name, value in experiment.evaluate(params, split).items()
  }
  for name, options in suite.evaluators.items():
    evaluate = config_lib.load('evaluators', name)
    metrics |= evaluate(workdir, **options)
  wanted = metrics.get(f'{suite.splits[0]}/moe/wanted')
  in_training = wanted_in_training(workdir / 'metrics.jsonl')
  costs = _costs(experiment, wanted, in_training)
  return {'costs': costs, 'metrics': metrics}


def wanted_in_training(path: pathlib.Path) -> float | None:
  """Returns experts that a token wanted, on average over a run's steps.

  A router that learns to want fewer wants many at first.

  Args:
    path: of the metrics that the run wrote.
  """
  import numpy as np

  lines = [json.loads(line) for line in path.read_text().splitlines()]
  seen = {p['step']: p['moe/wanted'] for p in lines if 'moe/wanted' in p}
  if not seen:
    return None
  steps = range(min(seen), max(seen) + 1)  # between two that were logged: lines
  return float(np.mean(np.interp(steps, [*seen], [*seen.values()])))


def _costs(
  experiment: Any, wanted: float | None, in_training: float | None
) -> dict[str, Any]:
  """Returns sizes and FLOPs; a training step counts as three forward passes.

  Args:
    experiment: of the run.
    wanted: experts of a token on average, as was measured; None: the config's.
    in_training: the same over the steps of the training.
  """
  from softmoe.costs import flops

  config, task = experiment.config, experiment.task
  forward = flops.forward(config)
  training = flops.forward(config, training=True)
  units = config.steps * config.data.batch_size * task.units_per_example
  if forward.is_fixed:
    wanted = in_training = None
  return {
    'params': experiment.num_params(),
    'active_params': flops.active_params(experiment, forward, wanted),
    'gflop': forward.flops(wanted) / 1e9,
    'unit': task.unit,
    'training_exaflop': 3 * training.flops(in_training) * units / 1e18,
  }


def curve(path: pathlib.Path, most: int = 50) -> list[dict[str, Any]]:
  """Returns at most so many points of the training and of the evaluation each.

  Args:
    path: of the metrics that a run wrote.
    most: the last one is always among them.
  """
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  evaluated = [_part(p, 'eval/') for p in lines if 'eval/loss' in p]
  keys = ('loss', 'accuracy', 'moe/')
  trained = [_part(p, *keys) for p in lines if 'loss' in p]
  return _thin(trained, most) + _thin(evaluated, most)


def _part(point: dict[str, Any], *prefixes: str) -> dict[str, Any]:
  return {k: v for k, v in point.items() if k.startswith(('step', *prefixes))}


def _thin(points: list[Any], most: int) -> list[Any]:
  stride = max(-(-len(points) // most), 1)
  return points[::-1][::stride][::-1]


if __name__ == '__main__':
  launch.prepare()
  launch.guard(lambda: main(sys.argv[1:]))
