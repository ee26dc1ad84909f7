"""What a finished run leaves for tables."""

import json
import math

import jax
import pytest

from softmoe import experiment as experiment_lib
from softmoe.costs import flops
from softmoe.errors import UserError
from softmoe.tables import suite as suite_lib
from softmoe.tables import worker


def test_time_adds_up_over_starts(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(worker.time, 'monotonic', lambda: now[0])
  path = tmp_path / 'run' / '.clock.json'
  first = worker.Clock(path, shared=True)
  first.note()  # no workdir yet
  path.parent.mkdir()
  now[0] = 107.0
  first.note()
  now[0] = 300.0
  second = worker.Clock(path, shared=False)
  now[0] = 301.5
  read = second.read()
  assert (read['seconds'], read['shared']) == (8.5, True)
  assert read['started'] == json.loads(path.read_text())['started']
  assert [p.name for p in path.parent.iterdir()] == ['.clock.json']


def test_a_curve_is_thin_and_ends_at_the_end(tmp_path):
  rows = [
    {'step': s, 'loss': 2.0 / s, 'images_per_second': 1.0}
    | {'accuracy': 0.5, 'moe/dropped': 0.1, 'gradient_norm': 3.0}
    for s in range(1, 202)
  ]
  rows += [{'step': s, 'eval/loss': 1.0} for s in (100, 201)]
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  points = worker.curve(path, most=50)
  trained = [p for p in points if 'loss' in p]
  assert len(trained) <= 50
  assert trained[-1] == {
    'step': 201,
    'loss': 2.0 / 201,
    'accuracy': 0.5,
    'moe/dropped': 0.1,
  }
  assert points[-2:] == [{'step': s, 'eval/loss': 1.0} for s in (100, 201)]


@pytest.mark.slow  # trains, unless another test of the process did
def test_metrics_of_all_splits_and_evaluators(finished, one_device):
  workdir, config, result = finished
  suite = suite_lib.Suite(
    'T',
    runs=(),
    splits=('test[:100]', 'test[100:110]'),
    evaluators={'tests.tables.tiny_suite:count': {'suffix': '.json'}},
  )
  measured = worker._measure(suite, workdir)
  metrics, costs = measured['metrics'], measured['costs']
  for name in ('loss', 'accuracy', 'moe/dispatch_max'):
    assert metrics[f'test[:100]/{name}'] == result[name]
  assert metrics['test[100:110]/examples'] == 10
  assert metrics['files'] == 2
  assert costs['params'] == result['params']
  assert costs['gflop'] == result['gflop_per_image']
  images = config.steps * config.data.batch_size
  assert math.isclose(
    costs['training_exaflop'], 3 * costs['gflop'] * images / 1e9
  )


def test_costs_are_of_the_experts_that_tokens_wanted(tiny, monkeypatch):
  cost = flops.Cost(2e9, 6e9, 1.0, 8, is_fixed=False, active=(1.0,))
  monkeypatch.setattr(flops, 'forward', lambda *_, **__: cost)
  config = tiny(model__moe__router='threshold')
  experiment = experiment_lib.build(config, jax.devices()[:1])
  costs = worker._costs(experiment, 2.0, 5.0)
  an_expert = 2 * 16 * 32 + 16 + 32
  assert costs['active_params'] == costs['params'] - (8 - 2) * an_expert
  assert costs['gflop'] == 2 + 2 / 8 * 4
  images = config.steps * config.data.batch_size
  in_training = 3 * (2 + 5 / 8 * 4) * images / 1e9
  assert math.isclose(costs['training_exaflop'], in_training)


def test_experts_wanted_in_training_are_a_mean_over_its_steps(tmp_path):
  rows = [{'step': 1, 'moe/wanted': 9.0}, {'step': 2, 'eval/moe/wanted': 0.0}]
  rows += [{'step': s, 'moe/wanted': w} for s, w in ((5, 5.0), (6, 5.0))]
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  expected = (9 + 8 + 7 + 6 + 5 + 5) / 6
  assert math.isclose(worker.wanted_in_training(path), expected)
  path.write_text('{"step": 1, "loss": 2.0}\n')
  assert worker.wanted_in_training(path) is None


@pytest.mark.parametrize(
  ('fields', 'name'),
  [
    ({'splits': ('test', 'val')}, 'val'),
    ({'evaluators': {'tests.tables.tiny_suite:cuont': {}}}, 'cuont'),
  ],
)
def test_what_cannot_be_evaluated_is_not_trained(tiny, fields, name):
  with pytest.raises(UserError, match=name):
    worker._check(suite_lib.Suite('T', runs=(), **fields), tiny())
