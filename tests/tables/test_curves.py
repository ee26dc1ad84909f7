"""Learning curves, read from a run's metrics."""

import json

import pytest

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.tables import curves
from softmoe.tasks import classification


def run(path):
  path.mkdir()
  config = config_lib.to_dict(classification.Config())
  (path / 'config.json').write_text(json.dumps(config))
  lines = [
    {'step': 1, 'loss': 2.0},
    {'step': 2, 'loss': 'NaN'},
    {'step': 2, 'eval/accuracy': 0.5},
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)
  return path


def test_reads_one_metric(tmp_path):
  path = run(tmp_path / 'run')
  steps, values = curves.read(path, 'loss')
  assert steps == [1, 2] and values[0] == 2.0
  assert curves.read(path, 'eval/accuracy') == ([2], [0.5])


def test_draws_a_picture(tmp_path):
  pytest.importorskip('matplotlib')
  output = tmp_path / 'curves.png'
  curves.plot(str(output), [str(run(tmp_path / 'run'))])
  assert output.read_bytes().startswith(b'\x89PNG')


def test_a_directory_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match='--workdir'):
    curves.plot(str(tmp_path / 'curves.png'), [str(tmp_path)])
