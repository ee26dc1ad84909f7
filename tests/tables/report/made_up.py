"""A suite and its results, made up: for tests, and for nothing else."""

import json
import math
import random

from softmoe.tables import suite as suite_lib
from softmoe.tables.report import summary
from softmoe.tables.report import write as write_lib

MODELS = {'vit': 0.0, 'tokens': 0.03, 'experts': 0.01, 'soft': 0.04}
WIDTHS = (32, 64)


def suite(models=MODELS, widths=WIDTHS, seeds=3):
  """Returns a suite of models x widths x seeds."""
  configs = {model: f'made_up:{model}' for model in models}
  points = [({'width': width}, {}) for width in widths]
  runs = suite_lib.product(configs, range(seeds), points)
  return suite_lib.Suite(
    'A made-up suite', runs, baseline='vit', splits=('test', 'faces')
  )


def facts(run, **changes):
  """Returns what a finished run writes."""
  draw = random.Random(run.name)
  wide = math.log2(run.sweep.get('width', 32) / 32)
  gain = MODELS.get(run.model, 0.0) / (1 + 2 * wide)
  accuracy = 0.75 + 0.16 * wide + gain + draw.gauss(0, 0.008)
  gflop = 0.004 * 3.6**wide * (1 if run.model == 'vit' else 1.01)
  metrics = {
    'test/accuracy': accuracy,
    'test/loss': 4 * (1 - accuracy),
    'faces/accuracy': accuracy - 0.1 + draw.gauss(0, 0.01),
    'fewshot/10shot': accuracy - 0.2 + draw.gauss(0, 0.01),
  }
  if run.model == 'tokens':
    metrics['test/moe/dropped'] = 0.05 + draw.random() / 50
    metrics['test/moe/used_experts'] = 0.9 + draw.random() / 20
  made = {
    'suite': 'made_up',
    'run': run.name,
    'model': run.model,
    'sweep': dict(run.sweep),
    'seed': run.seed,
    'command': f'python train.py --config=x.py:{run.model} # {run.name}',
    'config': {'steps': 4000},
    'commit': '0123456789abcdef',
    'versions': {'python': '3.11.7', 'jax': '0.10.2'},
    'machine': '2 cores of a made-up machine',
    'started': '2026-01-01T00:00:00',
    'finished': '2026-01-01T00:03:00',
    'seconds': 180.0,
    'shared': True,
    'data': 'sha256:feed',
    'costs': {
      'params': 1_000_000,
      'active_params': 500_000,
      'gflop': gflop,
      'unit': 'image',
      'training_exaflop': gflop * 3e-9 * 4000 * 256,
    },
    'metrics': metrics,
    'curve': curve(accuracy, draw),
  }
  return made | changes


def curve(accuracy, draw):
  """Returns a loss every 50 steps, an accuracy every 1,000."""
  points = []
  for step in range(50, 4001, 50):
    loss = 7 * math.exp(-step / 900) + 4 * (1 - accuracy) + draw.gauss(0, 0.03)
    points.append({'step': step, 'loss': loss})
    if step % 1000 == 0:
      seen = accuracy * (1 - math.exp(-step / 900))
      points.append({'step': step, 'eval/accuracy': seen})
  return points


def times(runs):
  """Returns the seconds of each model, timed alone."""
  models = {}
  for run in runs:
    wide = run.sweep.get('width', 32) / 32
    slow = {'vit': 1.0, 'tokens': 1.5}.get(run.model, 1.25)
    models[run.name.rsplit('-seed', 1)[0]] = {
      'train_step_seconds': 0.04 * slow * wide**1.4,
      'inference_seconds': 0.012 * slow * wide**1.4,
      'examples': 256,
    }
  return {
    'machine': '2 cores of a made-up machine',
    'versions': {},
    'commit': '0123456789abcdef',
    'rounds': 5,
    'models': models,
  }


def write(folder, of, timed=True, skip=0):
  """Writes the results of the suite but the last `skip`, and the times."""
  folder.mkdir(parents=True, exist_ok=True)
  for run in of.runs[: len(of.runs) - skip]:
    made = facts(run, suite=folder.name)
    (folder / f'{run.name}.json').write_text(json.dumps(made))
  if timed:
    (folder / 'times.json').write_text(json.dumps(times(of.runs)))
  return folder


def report(folder, of):
  """Writes the report, and returns its page."""
  content = summary.summarise(of, folder.name, folder)
  return write_lib.write(content, folder)[-1]
