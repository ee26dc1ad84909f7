"""The loop from config to result: what it writes, and when it must not."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image as pillow

from softmoe import experiment as experiment_lib
from softmoe.errors import Diverged, UserError
from softmoe.runs import checkpoint
from softmoe.runs import state as state_lib
from softmoe.training import loop
from softmoe.training import step as step_lib


def contents(workdir):
  """Returns path -> (content, time of the last change) of every file."""
  return {
    str(path.relative_to(workdir)): (path.read_bytes(), path.stat().st_mtime_ns)
    for path in workdir.rglob('*')
    if path.is_file()
  }


@pytest.fixture
def copied(finished, tmp_path):
  """Returns a copy of the finished run without its result, and its config."""
  workdir, config, _ = finished
  workdir = shutil.copytree(workdir, tmp_path / 'run')
  (workdir / 'result.json').unlink()
  return workdir, config


def test_workdir_holds_all_of_a_run(finished):
  workdir, config, result = finished
  names = {path.name for path in workdir.iterdir()}
  events = {name for name in names if name.startswith('events.out.tfevents.')}
  assert len(events) == 1
  assert names - events == {
    'config.json',
    'params.txt',
    'metrics.jsonl',
    'checkpoints',
    'result.json',
  }
  assert json.loads((workdir / 'result.json').read_text()) == result
  assert 'blocks/1/mlp/router/phi' in (workdir / 'params.txt').read_text()
  assert {p.name for p in (workdir / 'checkpoints').iterdir()} >= {'6', '8'}


def test_result_is_the_last_evaluation(finished):
  workdir, config, result = finished
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  moe = ('dispatch_max', 'combine_max', 'executed', 'flops')
  names = ('loss', 'accuracy', 'examples', *(f'moe/{name}' for name in moe))
  assert last == {
    'step': config.steps,
    **{f'eval/{name}': result[name] for name in names},
  }
  assert result['examples'] == 100
  assert result['split'] == 'test[:100]'
  assert result['params'] > 0
  assert result['devices'] == 1
  assert result['train']['images_per_second'] > 0


def test_metrics_are_written_at_the_due_steps(finished):
  lines = (finished[0] / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [r['step'] for r in rows if 'loss' in r] == [1, 2, 4, 6, 8]
  assert [r['step'] for r in rows if 'eval/loss' in r] == [3, 6, 8]


def test_a_finished_run_is_told_and_left_alone(finished, capsys):
  workdir, config, result = finished
  before = contents(workdir)
  assert loop.train(config, workdir) == result
  assert contents(workdir) == before
  assert capsys.readouterr().err == f'{workdir} holds the finished run\n'


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('mesh', 'data:3', 'product is 8'),
    ('mesh', 'data:8,model:1', 'NAME:SIZE,...'),
    ('model.moe.num_experts', 3, 'divides the 3 experts'),
    ('loss', 'hinge', 'sigmoid'),
    ('optimizer.name', 'sgdd', 'adafactor'),
    ('optimizer.schedule.name', 'linear', 'cosine'),
    ('optimizer.schedule.warmup', 9, 'config.steps = 8'),
    ('model.pool', 'max', 'gap'),
    ('model.moe.blocks', (2,), ''),
    ('data.batch_size', 12, 'multiple of 8'),
    ('data.eval_batch_size', 12, 'multiple of 8'),
    ('data.num_classes', 9, 'at least 10'),
    ('data.source', 'folder:/nowhere', 'can be read'),
    ('data.source', 'digitz', 'digits'),
    ('data.train_split', 'valid', 'train'),
    ('data.eval_split', 'test[:0]', 'a slice with examples'),
    ('checkpoint.best_metric', 'nope', "'accuracy'"),
  ],
)
def test_bad_input_is_named_before_anything_is_written(
  tiny, tmp_path, field, value, expected
):
  mesh = 'data:2,expert:4' if field.startswith('model.moe') else 'data:-1'
  config = {'mesh': mesh, field.replace('.', '__'): value}
  name = field.split('.')[-1]
  with pytest.raises(UserError, match=f'(?s){expected}') as error:
    loop.train(tiny(**config), tmp_path / 'run')
  named = 'mesh' if name == 'num_experts' else name
  assert named in error.value.field or 'schedule' in error.value.field
  assert '\n' not in str(error.value)
  assert not any((tmp_path / 'run').glob('*'))


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_corrupt_image_is_named_before_anything_is_written(
  tiny, tmp_path, split
):
  for folder in ('train/a', 'test/a'):
    (tmp_path / 'images' / folder).mkdir(parents=True)
    good = pillow.fromarray(np.zeros((8, 8), np.uint8))
    good.save(tmp_path / 'images' / folder / 'good.png')
  bad = tmp_path / 'images' / split / 'a' / 'bad.png'
  bad.write_bytes(b'\x89PNG no image')
  source = dict(
    data__source=f'folder:{tmp_path / "images"}', data__eval_split='test'
  )
  with pytest.raises(UserError, match='bad.png'):
    loop.train(tiny(mesh='data:-1', **source), tmp_path / 'run')
  assert list((tmp_path / 'run').iterdir()) == []


def test_a_label_out_of_range_is_named_before_anything_is_written(
  tiny, tmp_path
):
  images, labels = np.zeros((128, 8, 8), np.uint8), np.full(128, 12)
  file = tmp_path / 'data.npz'
  np.savez(
    file,
    train_images=images,
    train_labels=labels,
    test_images=images,
    test_labels=labels,
  )
  with pytest.raises(UserError, match='label of example 0: got 12; .* 0 to 9'):
    loop.train(tiny(data__source=f'npz:{file}'), tmp_path / 'run')
  assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.parametrize(
  ('field', 'value'), [('model.width', 32), ('optimizer.name', 'sgd')]
)
def test_another_experiment_is_refused_and_changes_nothing(
  finished, tiny, field, value
):
  workdir, _, _ = finished
  before = contents(workdir)
  changed = tiny(mesh='data:1', **{field.replace('.', '__'): value})
  with pytest.raises(UserError, match=f'config.{field}: got {value!r}'):
    loop.train(changed, workdir)
  assert contents(workdir) == before


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('model.width', 32, 'another model'),
    ('optimizer.name', 'sgd', 'optimizer'),
  ],
)
def test_checkpoints_of_another_experiment_are_refused(
  copied, tiny, one_device, field, value, message
):
  workdir, _ = copied
  config = json.loads((workdir / 'config.json').read_text())
  part, name = field.split('.')
  config[part][name] = value
  (workdir / 'config.json').write_text(json.dumps(config))
  before = contents(workdir)
  changed = tiny(mesh='data:1', **{field.replace('.', '__'): value})
  with pytest.raises(UserError, match=message):
    loop.train(changed, workdir)
  assert contents(workdir) == before


@pytest.mark.parametrize('file', ['metrics/metrics', 'state/_METADATA'])
def test_a_damaged_checkpoint_is_one_clear_error(copied, one_device, file):
  workdir, config = copied
  (path,) = (workdir / 'checkpoints' / '8').glob(file)
  os.truncate(path, path.stat().st_size // 2)
  before = contents(workdir)
  with pytest.raises(UserError, match='checkpoint') as error:
    loop.train(config, workdir)
  assert '\n' not in str(error.value)
  assert contents(workdir) == before


def test_a_corrupt_result_is_one_clear_error(copied):
  workdir, config = copied
  (workdir / 'result.json').write_text('{"accu')
  with pytest.raises(UserError, match='result.json'):
    loop.train(config, workdir)


def assert_finite(workdir, config):
  """Asserts that there are checkpoints, and no number in them is NaN."""
  experiment = experiment_lib.build(config)
  with checkpoint.Checkpoints(
    workdir / 'checkpoints', config.checkpoint
  ) as checkpoints:
    assert checkpoints.steps()
    for step in checkpoints.steps():
      state = checkpoints.restore(state_lib.abstract(experiment), step)
      assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize('bad_step', [5, 6])
def test_a_state_that_is_not_finite_is_not_saved(
  finished, tmp_path, one_device, monkeypatch, bad_step
):
  """Be it found at once, or a step late where nothing else happens."""
  make, config = step_lib.make_train_step, finished[1]

  def make_poisoned(experiment):
    train_step, calls = make(experiment), iter(range(1, config.steps + 1))

    def poisoned(state, batch):
      if next(calls) == bad_step:
        nan = jax.tree.map(lambda x: x * np.nan, state['params'])
        state = state | {'params': nan}
      return train_step(state, batch)

    poisoned.trace = train_step.trace
    return poisoned

  monkeypatch.setattr(step_lib, 'make_train_step', make_poisoned)
  with pytest.raises(Diverged, match=f'loss at step {bad_step} is'):
    loop.train(config, tmp_path)
  assert_finite(tmp_path, config)
  assert not (tmp_path / 'result.json').exists()


@pytest.mark.slow
def test_a_learning_rate_that_is_too_high_is_told(tiny, tmp_path, one_device):
  config = tiny(
    mesh='data:1',
    steps=30,
    checkpoint__every=1,
    optimizer__name='sgd',
    optimizer__learning_rate=1e4,
  )
  with pytest.raises(Diverged, match='lower learning rate'):
    loop.train(config, tmp_path)
  assert_finite(tmp_path, config)
