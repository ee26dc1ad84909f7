"""Trainings that two suites ask for."""

import dataclasses
import json

import pytest

from softmoe import config as config_lib
from softmoe.tables import folders as folders_lib
from softmoe.tables import reuse
from softmoe.tables import suite as suite_lib

TINY = suite_lib.load(suite_lib.find('tests/tables/tiny_suite.py'))
SUITE = dataclasses.replace(TINY, evaluators={})
RUN = SUITE.runs[0]
METRICS = {'val/accuracy': 0.1, **{f'{s}/accuracy': 0.5 for s in SUITE.splits}}


def elsewhere(config):
  """Returns the config on other data of the same kind."""
  data = dataclasses.replace(config.data, source='npz:other.npz')
  return dataclasses.replace(config, data=data)


@pytest.fixture
def folders(tmp_path):
  return folders_lib.Folders('mine', tmp_path / 'results', tmp_path / 'runs')


@pytest.fixture
def finish(folders):
  """Returns a function that writes what another suite finished."""

  def finish(folder='theirs', **changes):
    record = {
      'suite': folder,
      'run': f'wide-seed{RUN.seed}',
      'model': 'Wide',
      'sweep': {},
      'config': config_lib.to_dict(RUN.load_config()),
      'metrics': METRICS,
      'seconds': 3.0,
    }
    path = folders.results / folder / f'wide-seed{RUN.seed}.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record | changes))

  return finish


def test_the_same_training_is_taken_under_the_own_name(folders, finish):
  finish()
  assert reuse.take(SUITE, RUN, folders) == 'theirs/wide-seed0'
  value = folders_lib.read(folders.result(RUN.name))
  folders_lib.check(folders.result(RUN.name), RUN.load_config())
  assert value['run'] == RUN.name
  assert value['model'] == 'ViT'
  assert value['sweep'] == {'width': 8}
  assert value['taken_from'] == 'theirs/wide-seed0'
  assert value['seconds'] == 3.0
  assert set(value['metrics']) == set(METRICS) - {'val/accuracy'}


def test_who_trained_it_is_named_though_others_have_copies(folders, finish):
  finish('copies', taken_from='theirs/wide-seed0')
  assert reuse.take(SUITE, RUN, folders) == 'theirs/wide-seed0'


@pytest.mark.parametrize(
  'changes',
  [
    {'config': config_lib.to_dict(SUITE.runs[1].load_config())},
    {'config': config_lib.to_dict(SUITE.runs[2].load_config())},
    {'config': config_lib.to_dict(elsewhere(RUN.load_config()))},
    {'metrics': {'test[:50]/accuracy': 0.5}},
    {'config': {'new': 1}},
    {'suite': 'moved'},
    {'run': 'moved'},
  ],
)
def test_another_training_is_not_taken(folders, finish, changes):
  finish(**changes)
  assert not reuse.take(SUITE, RUN, folders)
  assert not folders.result(RUN.name).exists()


def test_a_finished_run_stays(folders, finish):
  finish()
  path = folders.result(RUN.name)
  path.parent.mkdir()
  path.write_text('mine')
  assert not reuse.take(SUITE, RUN, folders)
  assert path.read_text() == 'mine'


def test_a_run_in_use_and_evaluators_take_none(folders, finish):
  finish()
  with folders.lock(RUN.name):
    assert not reuse.take(SUITE, RUN, folders)
  assert not reuse.take(TINY, RUN, folders)
  assert reuse.take(SUITE, RUN, folders)
