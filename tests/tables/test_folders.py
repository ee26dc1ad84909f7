"""What is found in the folders of a suite: results, locks, other things."""

import json
import pathlib

import pytest

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.tables import folders as folders_lib


@pytest.fixture
def folders(tmp_path):
  folders = folders_lib.Folders('main', tmp_path / 'results', tmp_path / 'runs')
  folders.result('a').parent.mkdir(parents=True)
  return folders


def test_a_lock_is_of_one(folders):
  with folders.lock('a'):
    assert folders.lock('a') is None
    assert folders.lock('b') is not None
    assert folders_lib.in_use(folders.runs) == ['main/a']
  assert folders_lib.in_use(folders.runs) == []
  assert folders.lock('a') is not None


def test_a_finished_run_is_of_the_suites_config(folders, tiny):
  config = tiny()
  value = {'suite': 'main', 'run': 'a', 'config': config_lib.to_dict(config)}
  folders.result('a').write_text(json.dumps(value))
  folders_lib.check(folders.result('a'), config)
  folders_lib.check(folders.result('a'), tiny(data__source='fake'))
  folders_lib.check(folders.result('a'), tiny(log_every=7))
  with pytest.raises(UserError, match=r'a\.json.*config.steps=8.*9.*move'):
    folders_lib.check(folders.result('a'), tiny(steps=9))


@pytest.mark.parametrize(
  ('text', 'problem'),
  [
    ('{"suite": "ma', 'JSONDecodeError'),
    ('[1]', 'TypeError'),
    ('{}', 'KeyError'),
    ('{"suite": "other"}', 'other'),
    ('{"suite": "main", "run": "b", "config": {}}', 'another run'),
    ('{"suite": "main", "run": "a", "config": 3}', 'another run'),
    ('{"suite": "main", "run": "a", "config": {"new": 1}}', 'config.new'),
  ],
)
def test_foreign_files_are_named(folders, tiny, text, problem):
  path = folders.result('a')
  path.write_text(text)
  with pytest.raises(UserError, match=rf'a\.json.*{problem}'):
    folders_lib.check(path, tiny())
  assert path.read_text() == text


def test_places(folders):
  root = folders.results.parent
  assert folders.workdir('a') == root / 'runs/main/a'
  assert folders.times() == root / pathlib.Path('results/main/times.json')
