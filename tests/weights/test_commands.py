"""`python -m softmoe.weights`: inspect, convert, export."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.weights import __main__ as command
from softmoe.weights import arrays, hub, pretrained
from tests import untrained
from tests.tasks import tiny_pairs
from tests.weights import foreign

safetensors = pytest.importorskip('safetensors.numpy')


def build(config):
  return experiment_lib.build(config, devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def run(tiny, tmp_path_factory):
  """Returns a function that leaves a run with a result, at random weights."""

  def leave(model, **changes):
    config = tiny(model, mesh='data:1', **changes)
    experiment = build(config)
    rng = np.random.default_rng(0)
    abstract = state_lib.abstract(experiment)
    place = lambda x, value: jax.device_put(value.astype(x.dtype), x.sharding)
    state = jax.tree.map(lambda x: place(x, np.zeros(x.shape)), abstract)
    draw = lambda x: place(x, rng.normal(0, 0.3, x.shape))
    state['params'] = jax.tree.map(draw, abstract['params'])
    workdir = tmp_path_factory.mktemp(model)
    workdir_lib.write_json(
      workdir / 'config.json', config_lib.to_dict(experiment.config)
    )
    workdir_lib.write_json(workdir / 'result.json', {'accuracy': 0.5})
    with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
      checkpoints.save(0, state, force=True)
    return workdir, config, state['params']

  return leave


@pytest.fixture(scope='module')
def dense(run):
  return run('vit', model__activation='gelu_exact', model__scan=True)


def test_an_export_is_read_back(dense, tiny, tmp_path, one_device, capsys):
  """Under timm's names and under ours, and converted between them."""
  workdir, config, params = dense
  for name in ('timm', 'softmoe'):
    out = tmp_path / name
    command.main(['export', str(workdir), str(out), f'--to={name}'])
    fields = dict(model__activation='gelu_exact', mesh='data:1')
    found = pretrained.params(build(tiny('vit', init=str(out), **fields)))
    flat = lambda tree: [np.asarray(x) for x in jax.tree.leaves(tree)]
    unstacked = build(config).task.exchange(params)
    for a, b in zip(flat(found), flat(unstacked), strict=True):
      np.testing.assert_array_equal(a, b)
    card = (out / 'README.md').read_text()
    assert '| accuracy | 0.5 |' in card and '"activation": "gelu_exact"' in card
  again = tmp_path / 'again'
  command.main(['convert', str(tmp_path / 'softmoe'), str(again), '--to=timm'])
  read = lambda path: (path / 'model.safetensors').read_bytes()
  assert read(again) == read(tmp_path / 'timm')
  capsys.readouterr()
  command.main(['inspect', str(again)])
  told = capsys.readouterr().out.splitlines()
  assert 'arrays of timm' in told[0]
  assert '--config.model.width=16' in told and '--config.model.depth=2' in told
  assert '--config.model.activation=gelu_exact' in told
  assert '--config.model.num_heads=2' in told
  fields |= dict(init=str(again), model__num_heads=4)
  with pytest.raises(UserError, match=r'model\.num_heads: got 4; 2, as the'):
    pretrained.params(build(tiny('vit', **fields)))
  assert 'pos_embed float32 (1, 4, 16)' in told


def test_experts_keep_our_names(run, tiny, tmp_path, one_device):
  """And their low-rank parts become a part of the kernels."""
  workdir, _, params = run('soft', model__moe__lora_rank=2)
  out = tmp_path / 'out'
  with pytest.raises(UserError, match=r'model\.moe\.blocks.*no experts'):
    command.main(['export', str(workdir), str(out), '--to=timm'])
  assert not any(tmp_path.iterdir())
  command.main(['export', str(workdir), str(out), '--to=softmoe'])
  assert '"lora_rank": 0' in (out / 'config.json').read_text()
  config = tiny('soft', init=str(out), mesh='data:1')
  found = pretrained.params(build(config))
  stacked = params['blocks'][1]['mlp']['experts']['stacked']
  for name, linear in stacked.items():
    product = linear.pop('lora_a') @ linear.pop('lora_b')
    stacked[name] = linear | {'kernel': linear['kernel'] + product}
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, found, params)


def test_low_rank_parts_of_texts_are_summed_too(tmp_path, one_device):
  changes = dict(blocks=(0,), num_experts=2, lora_rank=2)
  sparse = dataclasses.replace(tiny_pairs.sparse(), **changes)
  made = tiny_pairs.config(
    mesh='data:1', model=dict(depth=1), text=dict(depth=1, moe=sparse)
  )
  workdir, out = untrained.run(made, tmp_path / 'run'), tmp_path / 'out'
  command.main(['export', str(workdir), str(out), '--to=softmoe'])
  written = json.loads((out / 'config.json').read_text())
  assert written['text']['moe']['lora_rank'] == 0
  assert written['text']['moe']['num_experts'] == sparse.num_experts
  assert not any('lora' in n for n in arrays.open_file(out).arrays)


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    ([], "COMMAND: got ''; one of"),
    (['inspect', 'nowhere.npz'], "weights: got 'nowhere.npz'; an intact"),
    (
      ['export', 'nowhere', 'OUT', '--to=timm'],
      "WORKDIR[@STEP]: got 'nowhere'; a run, which has a config.json",
    ),
    (['export', 'RUN', 'OUT', '--to=onnx'], "--to: got 'onnx'; one of ['timm'"),
    (['export', 'RUN', 'FULL', '--to=timm'], 'a new or empty folder'),
    (['export', 'RUN', 'OUT'], '--to'),
    (['export', 'RUN', 'OUT', '--to=hugging_face'], "'token': its class reads"),
    (
      ['export', 'RUN@7', 'OUT', '--to=timm'],
      'WORKDIR[@STEP]: got 7; one of [0]',
    ),
    (['export', 'RUN', 'OUT', '--to=gpt2'], "'language', by a decoder"),
  ],
)
def test_bad_input_writes_nothing(dense, tmp_path, one_device, argv, words):
  full = tmp_path / 'full'
  full.mkdir()
  (full / 'file').touch()
  places = {'RUN': str(dense[0]), 'FULL': str(full)}
  out = tmp_path / 'out'
  argv = [
    str(out)
    if word == 'OUT'
    else word.replace('RUN', places['RUN']).replace('FULL', places['FULL'])
    for word in argv
  ]
  with pytest.raises(UserError) as error:
    command.main(argv)
  assert words in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ['full']


def test_push_needs_the_library_first(dense, tmp_path, one_device, monkeypatch):
  workdir, out = dense[0], tmp_path / 'out'
  argv = ['export', str(workdir), str(out), '--to=timm', '--push=me/model']
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match=r'--push.*pip install huggingface_hub'):
      command.main(argv)
  assert not out.exists()
  called = []

  class Hub:
    @staticmethod
    def create_repo(name, exist_ok):
      called.append((name, exist_ok))

    @staticmethod
    def upload_folder(repo_id, folder_path):
      called.append((repo_id, folder_path))
      return 'https://hub/me/model'

  monkeypatch.setattr(hub, 'library', lambda field, given: Hub)
  command.main(argv)
  assert called == [('me/model', True), ('me/model', str(out))]


def test_a_file_without_a_head_has_no_classes(tmp_path):
  named = foreign.draw(foreign.timm()[0])
  named = {n: w for n, w in named.items() if not n.startswith('head')}
  path, out = tmp_path / 'x.safetensors', tmp_path / 'out'
  safetensors.save_file(named, path)
  argv = ['convert', str(path), str(out), '--heads=2']
  for name in ('hugging_face', 'softmoe'):
    with pytest.raises(UserError, match='^FILE: got .*head/kernel, a head:'):
      command.main([*argv, f'--to={name}'])
  assert not out.exists()
  command.main([*argv, '--to=timm'])
  config = json.loads((out / 'config.json').read_text())
  assert config['num_classes'] == config['pretrained_cfg']['num_classes'] == 0
  assert arrays.open_file(out).arrays.keys() == named.keys()


def test_our_own_file_needs_its_config(tmp_path):
  named = {'blocks/0/attention/query/kernel': np.ones((4, 4), np.float32)}
  path = tmp_path / 'x.safetensors'
  safetensors.save_file(named, path)
  with pytest.raises(UserError) as error:
    command.main(['inspect', str(path)])
  expected = 'a file of ours with its config.json beside it'
  assert str(error.value) == f'weights: got {str(path)!r}; {expected}'


def test_what_has_no_place_is_no_field_of_a_config(tmp_path):
  named = foreign.draw(foreign.timm()[0]) | {'odd': np.ones(1, np.float32)}
  path = tmp_path / 'x.safetensors'
  safetensors.save_file(named, path)
  argv = ['convert', str(path), str(tmp_path / 'out'), '--to=timm']
  with pytest.raises(UserError, match='FILE: got .* no place for odd$'):
    command.main(argv)


def test_what_no_format_tells_is_guessed(tmp_path, capsys):
  shapes, _ = foreign.timm()
  path = tmp_path / 'x.safetensors'
  safetensors.save_file(foreign.draw(shapes), path)
  out = tmp_path / 'out'
  argv = ['convert', str(path), str(out), '--to=hugging_face', '--heads=2']
  command.main(argv)
  config = json.loads((out / 'config.json').read_text())
  assert config['num_attention_heads'] == 2
  assert config['hidden_act'] == 'gelu' and config['layer_norm_eps'] == 1e-6
