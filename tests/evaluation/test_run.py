"""Evaluation of a run from its directory alone."""

import dataclasses
import functools
import json
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.evaluation import run
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.training import loop
from softmoe.weights import pretrained

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'
parse = runpy.run_path(str(TINY))['parse']
build_on_one = functools.partial(
  experiment_lib.build, devices=jax.devices()[:1]
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  monkeypatch.setattr(experiment_lib, 'build', build_on_one)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Returns the workdir and result of a run with an average of its weights."""
  workdir = tmp_path_factory.mktemp('finished')
  config = parse(
    'vit',
    model__depth=1,
    steps=12,
    ema=0.5,
    eval_every=2,
    checkpoint__keep_last=12,
    optimizer__learning_rate=0.03,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment_lib, 'build', build_on_one)
    return workdir, loop.train(config, workdir)


def accuracies(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return {r['step']: r['eval/accuracy'] for r in rows if 'eval/accuracy' in r}


def listing(workdir):
  return {
    path: path.read_bytes() if path.is_file() else b''
    for path in workdir.rglob('*')
  }


def test_latest_is_the_result(finished):
  workdir, result = finished
  before = listing(workdir)
  evaluated = run.evaluate_workdir(workdir)
  assert evaluated == {
    'step': 12,
    'split': 'test[:100]',
    'loss': result['loss'],
    'accuracy': result['accuracy'],
    'examples': 100,
  }
  assert listing(workdir) == before


def test_best_and_any_step_are_as_the_run_evaluated_them(finished):
  workdir, _ = finished
  known = accuracies(workdir)
  best = run.evaluate_workdir(workdir, step='best')
  assert best['accuracy'] == known[best['step']] == max(known.values())
  worst = min(known, key=known.get)
  assert run.evaluate_workdir(workdir, step=str(worst)) == {
    'step': worst,
    'split': 'test[:100]',
    'loss': pytest.approx(2.3, abs=0.5),
    'accuracy': known[worst],
    'examples': 100,
  }
  assert known[worst] < best['accuracy']


def test_any_split_can_be_evaluated(finished):
  workdir, _ = finished
  evaluated = run.evaluate_workdir(workdir, split='train[:50]')
  assert evaluated['split'] == 'train[:50]'
  assert evaluated['examples'] == 50


def test_the_average_is_evaluated(finished):
  workdir, _ = finished
  config = workdir_lib.read_config(workdir)
  experiment = build_on_one(config)
  with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
    state = state_lib.restore_or_init(experiment, checkpoints, pretrained.start)
    params = state_lib.restore_evaluated(experiment, checkpoints, 12)
  for restored, average, last in zip(
    *map(jax.tree.leaves, (params, state['ema'], state['params'])), strict=True
  ):
    np.testing.assert_array_equal(restored, average)
    assert not np.array_equal(restored, last) or not last.any()


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(step='lastest'), "--step: got 'lastest'; 'latest', 'best'"),
    (dict(step='-1'), "--step: got '-1'"),
    (dict(step='\N{SUPERSCRIPT TWO}'), '--step'),
    (dict(step='7'), '--step: got 7; one of '),
    (dict(split='valid'), "--split: got 'valid'"),
    (dict(split='test[:0]'), 'a slice with examples'),
    (dict(mesh='data:3'), "--mesh: got 'data:3'; sizes whose product is 1"),
  ],
)
def test_what_is_not_there_is_named(finished, changes, words):
  with pytest.raises(UserError) as error:
    run.evaluate_workdir(finished[0], **changes)
  assert words in str(error.value)


def test_a_directory_without_a_run_is_named_and_left_alone(tmp_path):
  with pytest.raises(UserError, match='--workdir.*config.json'):
    run.evaluate_workdir(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_is_named_and_left_alone(finished, tmp_path):
  shutil.copy(finished[0] / 'config.json', tmp_path)
  with pytest.raises(UserError, match='--workdir.*a run with a checkpoint'):
    run.evaluate_workdir(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_best_of_a_run_that_was_never_evaluated_is_named(finished, tmp_path):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  for metrics in workdir.glob('checkpoints/*/metrics'):
    shutil.rmtree(metrics)
    (metrics.parent / 'checksums.json').unlink()  # it would be damage
  with pytest.raises(UserError, match='--step: got .best.'):
    run.evaluate_workdir(workdir, step='best')


def test_another_model_than_the_config_is_refused(finished, tmp_path):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  config = workdir_lib.read_config(workdir)
  wider = dataclasses.replace(config.model, width=32)
  workdir_lib.write_json(
    workdir / 'config.json',
    dataclasses.asdict(dataclasses.replace(config, model=wider)),
  )
  with pytest.raises(UserError, match='another model'):
    run.evaluate_workdir(workdir)
