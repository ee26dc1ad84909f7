"""Learning curves, read from a run's metrics."""

import dataclasses
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


@pytest.mark.parametrize(
  ('splits', 'title'),
  [(('val',), 'val accuracy'), (('val', 'test'), 'eval accuracy')],
)
def test_the_title_names_the_split_that_all_runs_share(splits, title):
  data = classification.Config().data
  configs = [
    classification.Config(data=dataclasses.replace(data, eval_split=split))
    for split in splits
  ]
  assert curves.panels_shown(configs)['eval/accuracy'] == title


def test_a_directory_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match='--workdir'):
    curves.plot(str(tmp_path / 'curves.png'), [str(tmp_path)])


def test_a_torn_last_line_is_left(tmp_path):
  path = run(tmp_path / 'run')
  with (path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 3, "lo')
  assert curves.read(path, 'loss')[0] == [1, 2]


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'\xff\x00\n', 'line 1'),
    (b'{"step": 1}\n{"st\n', 'line 2'),
    (b'{"loss": 1}\n', 'line 1'),
    (b'3\n', 'line 1'),
    (None, 'No such file'),
  ],
)
def test_metrics_that_are_none_are_named(tmp_path, content, words):
  path = run(tmp_path / 'run') / 'metrics.jsonl'
  path.unlink() if content is None else path.write_bytes(content)
  with pytest.raises(UserError, match=f'metrics.jsonl: got .*{words}'):
    curves.read(path.parent, 'loss')


@pytest.mark.parametrize('name', ['curves.xyz', 'curves', 'no/folder.png'])
def test_a_picture_that_cannot_be_written_is_named(tmp_path, name):
  pytest.importorskip('matplotlib')
  with pytest.raises(UserError, match='OUTPUT: got'):
    curves.plot(str(tmp_path / name), [str(run(tmp_path / 'run'))])
