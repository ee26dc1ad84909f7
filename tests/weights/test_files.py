"""A run that starts from a weights file."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.models import patches, stack
from softmoe.tasks import classification
from softmoe.weights import arrays, hub, pretrained
from tests.weights import foreign

safetensors = pytest.importorskip('safetensors.numpy')


def parse(init='', mesh='data:1', **changes):
  config = config_lib.default(classification.Config)
  config.update(init=str(init), mesh=mesh)
  config.model.update(
    width=foreign.WIDTH,
    depth=foreign.DEPTH,
    mlp_dim=foreign.MLP,
    num_heads=foreign.HEADS,
    patch_size=(foreign.PATCH, foreign.PATCH),
    pool='token',
  )
  config.data.update(
    image_size=(foreign.SIZE, foreign.SIZE),
    channels=foreign.CHANNELS,
    num_classes=foreign.CLASSES,
  )
  config.update_from_flattened_dict(
    {path.replace('__', '.'): value for path, value in changes.items()}
  )
  return experiment_lib.parse(config)


def build(config):
  sizes = [int(axis.split(':')[1]) for axis in config.mesh.split(',')]
  return experiment_lib.build(config, devices=jax.devices()[: np.prod(sizes)])


SHAPES, _ = foreign.timm()
DRAWN = foreign.draw(SHAPES)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('files')


@pytest.fixture(scope='module')
def timm(folder):
  """Returns the file of a tiny timm model."""
  return written(folder / 'timm.safetensors', DRAWN)


def written(path, named):
  safetensors.save_file(named, path)
  return path


def started(config):
  """Returns the parameters by path, without scan, whole on the host."""
  experiment = build(config)
  found = pretrained.params(experiment)
  for x, like in zip(
    *map(jax.tree.leaves, (found, experiment.abstract_params)), strict=True
  ):
    assert x.sharding == like.sharding and x.dtype == like.dtype
  found = jax.tree.map(np.asarray, found)
  blocks = stack.unstack(found['blocks'], config.model)
  leaves = traverse_util.flatten_dict(found | {'blocks': blocks})
  return {'/'.join(map(str, path)): x for path, x in leaves.items()}


def test_scan_mesh_and_type_may_differ(folder, capsys):
  half = {n: a.astype(jnp.bfloat16) for n, a in DRAWN.items()}
  file = written(folder / 'half.safetensors', half)
  fields = dict(model__scan=True, data__batch_size=8, data__eval_batch_size=8)
  found = started(parse(file, 'data:2,fsdp:4', **fields))
  qkv = np.asarray(half['blocks.1.attn.qkv.weight'], np.float32)
  np.testing.assert_array_equal(
    found['blocks/1/attention/key/kernel'],
    qkv[foreign.WIDTH : 2 * foreign.WIDTH].T,
  )
  kernel = np.asarray(half['patch_embed.proj.weight'], np.float32)
  np.testing.assert_array_equal(
    found['patches/kernel'], np.transpose(kernel, (2, 3, 1, 0))
  )
  told = capsys.readouterr().err
  assert f'starting from {len(found)} parameters of {file}, a timm' in told
  assert "trained with activation 'gelu_exact'; config.model.acti" in told


def test_another_resolution_and_head(timm, capsys):
  found = started(
    parse(
      timm,
      init_head='reset',
      data__image_size=(16, 12),
      data__num_classes=9,
      model__activation='gelu_exact',
    )
  )
  expected = patches.resize_positions(
    jnp.asarray(DRAWN['pos_embed']), (2, 2), (4, 3)
  )
  np.testing.assert_allclose(found['patches/position'], expected, atol=1e-6)
  assert found['head/kernel'].shape == (foreign.WIDTH, 9)
  assert not found['head/kernel'].any()
  told = capsys.readouterr().err.splitlines()
  assert told[1:] == [
    f'  resized: patches/position (1, 5, {foreign.WIDTH}) -> '
    f'(1, 13, {foreign.WIDTH})',
    '  left at initialisation: head/bias, head/kernel',
    '  left over: head.bias, head.weight',
  ]


def test_what_is_unmatched_may_be_allowed(folder, capsys):
  named = dict(DRAWN)
  del named['head.weight'], named['head.bias']
  named['extra.weight'] = np.ones(3, np.float32)
  file = written(folder / 'headless.safetensors', named)
  with pytest.raises(UserError) as error:
    pretrained.params(build(parse(file)))
  assert 'lacks head/bias, head/kernel, and this model has no' in str(
    error.value
  )
  found = started(parse(file, init_allow='head/.*|extra.*'))
  assert not found['head/kernel'].any()
  told = capsys.readouterr().err
  assert 'left over: extra.weight' in told and 'initialisation: head' in told


def test_a_folder_in_several_files_with_a_config(folder):
  shapes, _ = foreign.hugging_face()
  drawn = foreign.draw(shapes)
  whole = folder / 'sharded'
  whole.mkdir()
  parts = dict(enumerate((list(drawn)[::2], list(drawn)[1::2])))
  index = {
    n: f'part-{i}.safetensors' for i, part in parts.items() for n in part
  }
  for i, part in parts.items():
    written(whole / f'part-{i}.safetensors', {n: drawn[n] for n in part})
  (whole / arrays.INDEX).write_text(json.dumps({'weight_map': index}))
  config = {'num_attention_heads': foreign.HEADS, 'hidden_act': 'gelu'}
  (whole / 'config.json').write_text(json.dumps(config))
  found = started(parse(whole))
  np.testing.assert_array_equal(
    found['head/kernel'], drawn['classifier.weight'].T
  )
  (whole / 'config.json').write_text(json.dumps({'num_attention_heads': 8}))
  with pytest.raises(
    UserError, match=r'config\.model\.num_heads: got 2; 8, as'
  ):
    pretrained.params(build(parse(whole)))


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_prefixed_and_in_half_precision(folder, save):
  shapes, _ = foreign.flax(foreign.AUGREG)
  drawn = foreign.draw(shapes)
  file = folder / f'{save.__name__}.npz'
  # NumPy saves bfloat16 as two bytes of no type.
  half = {n: a.astype(jnp.bfloat16) for n, a in drawn.items()}
  save(file, **half)
  opened = arrays.open_file(file).arrays
  for name, array in half.items():
    np.testing.assert_array_equal(opened[name], array)


# --- Bad input.


def refused(experiment, name, **changes):
  """Returns the one line that a start from `name` ends with."""
  config = dataclasses.replace(experiment.config, init=str(name), **changes)
  task = type(experiment.task)(config)
  experiment = dataclasses.replace(experiment, config=config, task=task)
  with pytest.raises(UserError) as error:
    pretrained.params(experiment)
  line = str(error.value)
  assert '\n' not in line and len(line) < 600
  return line


@pytest.fixture(scope='module')
def experiment():
  return build(parse())


def bad_files(folder):
  good = written(folder / 'good.safetensors', DRAWN).read_bytes()
  np.savez(folder / 'good.npz', **DRAWN)
  zipped = (folder / 'good.npz').read_bytes()
  objects = folder / 'objects.npz'
  np.savez(objects, pos_embed=np.array([{}], object))
  rng = np.random.default_rng(0)
  lying = (1 << 40).to_bytes(8, 'little') + good[8:]
  for name, content in {
    'random.safetensors': rng.bytes(1000),
    'random.npz': rng.bytes(1000),
    'empty.safetensors': b'',
    'truncated.safetensors': good[:-100],
    'in_the_header.safetensors': good[:100],
    'lying.safetensors': lying,
    'truncated.npz': zipped[:-100],
    'pickle.npz': pickle.dumps(DRAWN),
    'pickle.safetensors': pickle.dumps(DRAWN),
  }.items():
    (folder / name).write_bytes(content)
    yield folder / name
  yield objects


def test_damaged_files_are_one_line(tmp_path, experiment):
  for path in bad_files(tmp_path):
    line = refused(experiment, path)
    assert line.startswith(f"config.init: got '{path}'; an intact"), line


def test_a_pickle_is_never_loaded(tmp_path, experiment, monkeypatch):
  def explode(*_):
    raise AssertionError('unpickled')

  for module in (pickle, pickle._Unpickler):
    monkeypatch.setattr(module, 'load', explode)
  monkeypatch.setattr(pickle, 'loads', explode)
  for path in bad_files(tmp_path):
    refused(experiment, path)


def test_other_models_are_one_line(tmp_path, experiment, timm):
  build_ = lambda **changes: build(parse(timm, **changes))
  for changes, words in (
    (
      dict(model__width=32),
      f'is (32,), as in this model, not ({foreign.WIDTH},',
    ),
    (
      dict(model__mlp_dim=64),
      'kernel is (64, 16), as in this model, not (32, ',
    ),
    (dict(model__depth=1), 'has no place for blocks.1.'),
    (dict(model__depth=3), 'the file lacks blocks/2/'),
    (dict(model__pool='gap'), 'has no place for cls_token'),
    (dict(data__num_classes=9), "config.init_head: got 'keep'; 'reset', since"),
  ):
    with pytest.raises(UserError) as error:
      pretrained.params(build_(**changes))
    line = str(error.value)
    assert words in line and line.startswith('config.init'), line
  half = {n: a for n, a in DRAWN.items() if not n.startswith('blocks.1')}
  half |= {f'model.{n}': a for n, a in DRAWN.items() if 'blocks.1' in n}
  path = written(tmp_path / 'half.safetensors', half)
  assert 'no place for model.blocks.1' in refused(experiment, path)
  path = written(tmp_path / 'none.safetensors', {'a': np.ones(1)})
  assert 'a file with a' in refused(experiment, path)
  path = written(
    tmp_path / 'rank.safetensors', DRAWN | {'head.weight': np.ones(3)}
  )
  assert 'head.weight of shape (3,)' in refused(experiment, path)


def test_names_of_the_hub(tmp_path, experiment, monkeypatch):
  line = refused(experiment, 'hf://nobody')
  assert line.startswith("config.init: got 'hf://nobody'; 'hf://OWNER/NAME")

  class Hub:
    @staticmethod
    def snapshot_download(repository, revision, allow_patterns):
      assert (repository, revision) == ('a/b', 'v1')
      written(tmp_path / arrays.ONE, DRAWN)
      return tmp_path

  monkeypatch.setattr(hub, 'library', lambda field, given: Hub)
  assert hub.fetch('hf://a/b@v1') == tmp_path
  monkeypatch.undo()

  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr(hub.importlib, 'import_module', missing)
  assert 'pip install huggingface_hub' in refused(experiment, 'hf://a/b')
