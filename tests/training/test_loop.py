"""The loop from config to result: what it writes, and when it must not."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image as pillow

from softmoe import experiment as experiment_lib
from softmoe.errors import Diverged, UserError, WriteFailed
from softmoe.runs import checkpoint
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
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
    '.lock',
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


def flip(path):
  """Flips the lowest bit of the byte in the middle."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


FILES = ['metrics/metrics', 'state/_METADATA', 'state/ocdbt.process_0/d/*']


@pytest.mark.parametrize('file', FILES)
def test_a_flipped_bit_in_a_checkpoint_is_found(copied, one_device, file):
  workdir, config = copied
  (path,) = (workdir / 'checkpoints' / '8').glob(file)
  flip(path)
  before = contents(workdir)
  expected = f'{path.parent.name}/{path.name}: not as written.*before it is 6'
  with pytest.raises(UserError, match=expected) as error:
    loop.train(config, workdir)
  assert '\n' not in str(error.value)
  assert contents(workdir) == before


def test_a_damaged_checkpoint_is_skipped_where_asked(
  finished, copied, one_device, capsys
):
  """The run ends with the same numbers; the damaged one stays, aside."""
  workdir, config = copied
  (path,) = (workdir / 'checkpoints' / '8').glob('state/ocdbt.process_0/d/*')
  flip(path)
  content = path.read_bytes()
  result = loop.train(config, workdir, skip_damaged=True)
  assert result['loss'] == finished[2]['loss']
  err = capsys.readouterr().err
  assert 'is damaged: now 8.damaged' in err and 'at step 6' in err
  aside = workdir / 'checkpoints' / '8.damaged'
  assert aside.joinpath(*path.parts[-4:]).read_bytes() == content


def test_a_second_start_is_refused(copied, one_device, tmp_path):
  workdir, config = copied
  before = contents(workdir)
  with workdir_lib.held(workdir, config):
    with pytest.raises(UserError, match='--workdir.*no other process'):
      loop.train(config, workdir)
    assert contents(workdir) == before
  loop.train(config, workdir)


@pytest.mark.slow
def test_lost_metrics_and_a_reset_optimizer_are_told(
  copied, one_device, capsys, monkeypatch
):
  workdir, config = copied
  (workdir / 'metrics.jsonl').unlink()
  restore = state_lib.restore_or_init

  def reset(*args):
    state = restore(*args)
    fresh = jax.tree.map(lambda x: x * 0, state['opt_state'])
    return state | {'opt_state': fresh}

  monkeypatch.setattr(state_lib, 'restore_or_init', reset)
  loop.train(config, workdir)
  err = capsys.readouterr().err
  assert 'warning: metrics.jsonl is missing: the metrics up to step 8' in err
  assert 'count of checkpoint 8 is 0: it was reset' in err


@pytest.mark.slow
def test_a_checkpoint_of_before_checksums_loads_with_a_warning(
  copied, one_device, capsys
):
  workdir, config = copied
  (workdir / 'checkpoints' / '8' / 'checksums.json').unlink()
  loop.train(config, workdir)
  err = capsys.readouterr().err
  assert err.count('warning: ') == 1
  assert '8 has no checksums: unchecked' in err


def test_a_link_in_a_workdir_is_not_written_through(copied, one_device):
  workdir, config = copied
  precious = workdir.parent / 'precious.txt'
  precious.write_text('precious')
  for name in ('params.txt', 'config.json', 'metrics.jsonl'):
    link = workdir / name
    if name == 'params.txt':
      link.unlink()
      link.symlink_to(precious)
    else:
      moved = link.rename(workdir.parent / name)
      link.symlink_to(moved)
  before = (workdir.parent / 'metrics.jsonl').read_bytes()
  loop.train(config, workdir)
  assert precious.read_text() == 'precious'
  assert 'router/phi' in (workdir / 'params.txt').read_text()
  assert (workdir.parent / 'metrics.jsonl').read_bytes() == before


def test_a_workdir_that_is_deleted_ends_the_run(
  finished, tmp_path, one_device, monkeypatch
):
  """It is not made anew, without what was in it."""
  config, workdir = finished[1], tmp_path / 'run'
  make = step_lib.make_train_step

  def make_deleting(experiment):
    train_step = make(experiment)

    def deleting(state, batch):
      if state['step'] == 4:
        workdir.rename(tmp_path / 'gone')
      return train_step(state, batch)

    deleting.trace = train_step.trace
    return deleting

  monkeypatch.setattr(step_lib, 'make_train_step', make_deleting)
  with pytest.raises(WriteFailed, match=r'checkpoints/\d could not be written'):
    loop.train(config, workdir)
  assert not workdir.exists()


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


@pytest.mark.parametrize(
  'bad_step', [5, pytest.param(6, marks=pytest.mark.slow)]
)
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
    optimizer__learning_rate=1e3,
  )
  with pytest.raises(Diverged, match='lower learning rate'):
    loop.train(config, tmp_path)
  assert_finite(tmp_path, config)
