"""Who owns a workdir."""

import dataclasses
import json
import pathlib

import pytest

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError, WriteFailed
from softmoe.evaluation import run
from softmoe.models.config import MoEConfig, TextConfig
from softmoe.runs import disk
from softmoe.runs import workdir as workdir_lib
from softmoe.tasks import classification, contrastive, language

CONFIG = classification.Config()


def owned(path, config=CONFIG):
  path.mkdir()
  workdir_lib.write_json(path / 'config.json', config_lib.to_dict(config))
  return path


def change(**fields):
  config = config_lib.default(classification.Config)
  config.update_from_flattened_dict(
    {path.replace('__', '.'): value for path, value in fields.items()}
  )
  return experiment_lib.parse(config)


def test_a_new_directory_is_made_and_stays_empty(tmp_path):
  workdir = workdir_lib.claim(tmp_path / 'a' / 'b', CONFIG)
  assert workdir == tmp_path / 'a' / 'b'
  assert list(workdir.iterdir()) == []


def test_a_config_of_before_a_field_was_added_has_its_default(tmp_path):
  values = config_lib.to_dict(CONFIG)
  del values['model']['moe']['scale_init']
  (tmp_path / 'run').mkdir()
  workdir_lib.write_json(tmp_path / 'run' / 'config.json', values)
  assert workdir_lib.read_config(tmp_path / 'run') == CONFIG


def test_home_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert workdir_lib.claim('~/run', CONFIG) == tmp_path / 'run'


@pytest.mark.parametrize('url', ['gs://bucket/run', 's3://bucket', 'gs:/run'])
def test_a_url_is_refused_before_anything_is_made(tmp_path, monkeypatch, url):
  monkeypatch.chdir(tmp_path)
  for use in (
    lambda: workdir_lib.claim(url, CONFIG),
    lambda: workdir_lib.read_config(pathlib.Path(url)),
    lambda: run.evaluate_workdir(url),
  ):
    with pytest.raises(UserError, match='^--workdir: .*mounted here, such as'):
      use()
  assert list(tmp_path.iterdir()) == []


def test_a_colon_in_a_name_is_no_url(tmp_path):
  workdir_lib.claim(tmp_path / 'lr:1e-3' / 'run', CONFIG)


def test_what_a_run_leaves_that_was_killed_at_its_start_is_empty(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / '.config.json').write_text('{"na')
  workdir_lib.claim(tmp_path, CONFIG)


@pytest.mark.parametrize('file', ['notes.txt', 'checkpoints/1/state'])
def test_files_of_something_else_are_refused(tmp_path, file):
  path = tmp_path / file
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('precious')
  with pytest.raises(UserError, match='new, empty or of a run'):
    workdir_lib.claim(tmp_path, CONFIG)
  assert path.read_text() == 'precious'


@pytest.mark.parametrize('parent', ['file', '/proc', '/sys'])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path, parent):
  (tmp_path / 'file').write_text('')
  if parent.startswith('/') and not pathlib.Path(parent).exists():
    pytest.skip(f'no {parent} here')
  with pytest.raises(UserError, match='--workdir.*can be made'):
    workdir_lib.claim(tmp_path / parent / 'run', CONFIG)


def test_a_directory_without_write_permission_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr('os.access', lambda *_: False)
  with pytest.raises(UserError, match='--workdir.*writable'):
    workdir_lib.claim(tmp_path, CONFIG)


@pytest.mark.parametrize(
  'changes',
  [
    dict(mesh='data:2,fsdp:2,expert:2', model__remat=True),
    dict(log_every=1, eval_every=7),
    dict(checkpoint__every=3, checkpoint__keep_last=5),
    dict(data__threads=1, data__prefetch=0, data__eval_batch_size=8),
    dict(model__attention='cudnn'),
  ],
)
def test_a_run_goes_on_with_what_changes_no_number(tmp_path, changes):
  workdir = owned(tmp_path / 'run')
  workdir_lib.claim(workdir, change(**changes))


def test_another_sample_changes_no_number():
  sample = language.SampleConfig(tokens=4)
  new = language.Config(sample=sample)
  assert workdir_lib.changes(language.Config(), new) == {}


def test_either_tower_may_keep_less_for_its_backward_pass():
  text = TextConfig(remat=True, moe=MoEConfig(exchange_chunks=2))
  new = contrastive.Config(text=text)
  assert workdir_lib.changes(contrastive.Config(), new) == {}


def test_what_is_compared_in_a_batch_keeps_its_size():
  data = dataclasses.replace(contrastive.Config().data, eval_batch_size=8)
  changes = workdir_lib.changes(
    contrastive.Config(), contrastive.Config(data=data)
  )
  assert changes.keys() == {'data.eval_batch_size'}


def test_a_run_goes_on_from_when_fsdp_was_no_axis(tmp_path):
  workdir = owned(tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  (workdir / 'config.json').write_text(json.dumps(config | {'fsdp': True}))
  workdir_lib.claim(workdir, change(mesh='fsdp:8'))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('seed', 1),
    ('steps', 5),
    ('model.width', 16),
    ('model.moe.num_experts', 2),
    ('optimizer.name', 'sgd'),
    ('data.batch_size', 8),
  ],
)
def test_another_experiment_is_refused(tmp_path, field, value):
  workdir = owned(tmp_path / 'run')
  with pytest.raises(UserError, match=f'config.{field}: got {value!r}'):
    workdir_lib.claim(workdir, change(**{field.replace('.', '__'): value}))


def test_a_run_of_another_task_is_refused(tmp_path):
  workdir = owned(tmp_path / 'run', language.Config())
  expected = "config.task: got 'classification'; 'language', as the run in"
  with pytest.raises(UserError, match=expected):
    workdir_lib.claim(workdir, CONFIG)


@pytest.mark.parametrize(
  'text',
  ['', '{"steps": 3', '[]', '"x"', '\xff', '{"stepz": 1}', '{"model":1}'],
)
def test_a_corrupt_config_is_one_clear_error(tmp_path, text):
  (tmp_path / 'config.json').write_text(text, encoding='latin-1')
  with pytest.raises(UserError, match='config.json|config.stepz|config.model'):
    workdir_lib.claim(tmp_path, CONFIG)


def test_config_is_read_back(tmp_path):
  config = change(model__moe__blocks=(2, 3), data__value_range=(0.0, 1.0))
  assert workdir_lib.read_config(owned(tmp_path / 'run', config)) == config


def test_a_directory_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match='config.json .No such file'):
    workdir_lib.read_config(tmp_path)


def test_result_is_read_back(tmp_path):
  assert workdir_lib.read_result(tmp_path) is None
  workdir_lib.write_json(tmp_path / 'result.json', {'accuracy': 0.5})
  assert workdir_lib.read_result(tmp_path) == {'accuracy': 0.5}
  (tmp_path / 'result.json').write_text('{')
  with pytest.raises(UserError, match='result.json'):
    workdir_lib.read_result(tmp_path)


def test_a_workdir_is_a_runs_before_it_has_other_files(
  tiny, tmp_path, monkeypatch
):
  experiment = experiment_lib.build(tiny('vit'), training=False)
  monkeypatch.setattr(experiment.task, 'files', lambda: {'tokenizer': b''})
  write = disk.write

  def stop_after(path, content):
    write(path, content)
    if path.name == stop:
      raise WriteFailed(path, OSError('disk full'))

  monkeypatch.setattr(disk, 'write', stop_after)
  for stop in ('config.json', 'tokenizer', 'params.txt'):
    with pytest.raises(WriteFailed, match=stop):
      workdir_lib.describe(experiment, tmp_path)
    workdir_lib.claim(tmp_path, experiment.config)
    for path in tmp_path.iterdir():
      path.unlink()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'config.json'
  workdir_lib.write_json(path, {'a': 1})

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(pathlib.Path, 'replace', fail)
  with pytest.raises(WriteFailed, match='config.json could.*disk full'):
    workdir_lib.write_json(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1}


def test_a_run_keeps_to_its_data(tmp_path):
  manifest, source = tmp_path / 'manifest.json', f'glyphs:{tmp_path}'
  config = change(data__source=source)

  def found(fingerprint, config=config):
    content = {'data': 'glyphs', 'fingerprint': fingerprint}
    manifest.write_text(json.dumps(content))
    return experiment_lib.with_fingerprint(config)

  run_dir = owned(tmp_path / 'run', found('old'))
  assert workdir_lib.claim(run_dir, found('old')) == run_dir
  expected = "config.data.fingerprint: got 'new'; 'old', as the run in"
  with pytest.raises(UserError, match=expected):
    workdir_lib.claim(run_dir, found('new'))
  expected = "config.data.fingerprint: got 'old'; 'new', that of the data"
  with pytest.raises(UserError, match=expected):
    found('new', workdir_lib.read_config(run_dir))


def test_most_sources_have_no_fingerprint():
  assert experiment_lib.with_fingerprint(CONFIG) == CONFIG
