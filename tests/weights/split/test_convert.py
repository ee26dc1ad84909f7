"""A run split into experts is a run that says what the dense one does."""

import json

import numpy as np
import pytest

from softmoe.errors import UserError
from softmoe.evaluation import run as evaluation
from softmoe.models import config as model_config
from softmoe.runs import load
from softmoe.tables.thresholds import measure
from softmoe.weights.split import __main__ as command
from softmoe.weights.split import convert, inputs
from tests import untrained

pytestmark = pytest.mark.usefixtures('launched')


@pytest.fixture
def dense(one_device, tmp_path):
  return untrained.run(untrained.text(), tmp_path / 'dense-seed0')


def params(workdir):
  experiment, step, params = load.restore(workdir)
  return experiment.task.exchange(params), experiment.config, step


def units_of(kernel):
  """Returns the weights of each hidden unit, those of all experts together."""
  columns = np.swapaxes(np.asarray(kernel), -1, -2)
  return sorted(map(tuple, columns.reshape(-1, columns.shape[-1])))


def same_metrics(one, other):
  for name, value in other.items():
    if isinstance(value, float) and not name.startswith('moe/'):
      assert one[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
def test_a_language_model(one_device, tmp_path, capsys):
  config = untrained.text(scan=True, activation='swiglu')
  dense = untrained.run(config, tmp_path / 'dense')
  out = tmp_path / 'out'
  command.main([str(dense), str(out), '--experts=4', '--tokens=100'])
  told = capsys.readouterr().out
  assert told == f'{out}: 2 MLPs, each as 4 experts of 4 units\n'
  before, after = map(evaluation.evaluate_workdir, (dense, out))
  assert after['moe/wanted'] == 4
  same_metrics(after, before)
  (old, _, _), (new, config, step) = params(dense), params(out)
  assert (config.name, config.init, step) == ('text, split', f'{dense}@0', 0)
  for i, block in old['blocks'].items():
    ours = new['blocks'][i]['mlp']['experts']['stacked']
    for name in ('up', 'factor'):
      whole = units_of(block['mlp'][name]['kernel'])
      assert units_of(ours[name]['kernel']) == whole


@pytest.mark.slow
def test_an_image_classifier_on_a_mesh(tiny, tmp_path):
  config = tiny('vit', steps=2)
  dense = untrained.run(config, tmp_path / 'dense')
  convert.convert(dense, tmp_path / 'out', 8, num_tokens=500)
  before, after = map(evaluation.evaluate_workdir, (dense, tmp_path / 'out'))
  same_metrics(after, before)
  every, low = measure.measure(
    [str(tmp_path / 'out')], [measure.ALL, 0.3], rounds=1
  )
  assert every.metrics['loss'] == pytest.approx(before['loss'], rel=1e-5)
  assert 1 <= low.metrics['moe/wanted'] < every.metrics['moe/wanted'] == 8


def test_bad_input(dense, tmp_path):
  out = tmp_path / 'out'
  for options, message in (
    (dict(num_experts=3), '--experts: got 3; a divisor of 16'),
    (dict(num_experts=32), '--experts: got 32; a divisor of 16'),
    (dict(num_experts=4, step='7'), 'step.*got.*7'),
    (dict(num_experts=4, step='first'), "--step: got 'first'"),
  ):
    with pytest.raises(UserError, match=message):
      convert.convert(dense, out, **options)
  with pytest.raises(UserError, match='^WORKDIR: got .*nowhere'):
    convert.convert(tmp_path / 'nowhere', out, 4)
  assert not out.exists()


def test_a_field_that_experts_do_not_know_is_named_before_any_work(
  dense, tmp_path, monkeypatch
):
  """Whatever batch the dense run was trained by: nothing is trained here."""
  config = json.loads((dense / 'config.json').read_text())
  config['data']['batch_size'] = 3
  config['optimizer'] |= {'accumulate': 2, 'frozen': ['.*/mlp/up/.*']}
  (dense / 'config.json').write_text(json.dumps(config))
  never = lambda *_: pytest.fail('it went on')
  monkeypatch.setattr(inputs, 'of_mlps', never)
  with pytest.raises(UserError, match='config.optimizer.frozen: got'):
    convert.convert(dense, tmp_path / 'out', 4)


def test_what_is_there_stays(dense, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'notes').touch()
  for out in (tmp_path / 'out', tmp_path / 'out' / 'notes', dense):
    with pytest.raises(UserError, match='OUT: got .*; a directory that is new'):
      convert.convert(dense, out, 4)
  assert json.loads((dense / 'config.json').read_text())['name'] == 'text'


def test_a_mixture_has_no_mlps_to_split(one_device, tmp_path):
  moe = model_config.MoEConfig(router='threshold', blocks=(1,), num_experts=2)
  mixed = untrained.run(untrained.text(moe=moe), tmp_path / 'mixed')
  with pytest.raises(UserError, match='WORKDIR: got .*; a run whose model'):
    convert.convert(mixed, tmp_path / 'out', 4)
