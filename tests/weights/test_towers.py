"""A tower of images that starts from a classifier: of a run, or of a file."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.models import patches, stack
from softmoe.runs import load
from softmoe.weights import pretrained
from tests import untrained
from tests.tasks import tiny_pairs
from tests.weights import foreign

SIZES = dict(width=16, depth=2, mlp_dim=32, num_heads=2)


def build(**changes):
  config = tiny_pairs.config(**dict(mesh='data:1') | changes)
  count = 8 if 'fsdp' in config.mesh else 1
  return experiment_lib.build(config, jax.devices()[:count])


@pytest.fixture(scope='module')
def classifier(tiny, tmp_path_factory):
  """Returns the workdir of a classifier, and its parameters."""
  workdir = tmp_path_factory.mktemp('classifier')
  untrained.run(tiny('vit', mesh='data:8'), workdir)
  return workdir, jax.tree.map(np.asarray, load.restore(workdir).params)


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_classifier_is_the_tower_and_texts_start_fresh(classifier, capsys):
  workdir, expected = classifier
  experiment = build(init=str(workdir), model=SIZES)
  found = pretrained.params(experiment)
  assert_same(
    found.pop('image'), {k: expected[k] for k in expected if k != 'head'}
  )
  fresh = jax.jit(experiment.init_params)()
  assert_same(found, {k: fresh[k] for k in found})
  told = capsys.readouterr().err
  assert 'left over: head/bias, head/kernel' in told
  assert 'left at initialisation: bias, log_scale, text/blocks/0/' in told
  assert 'resized' not in told


@pytest.mark.slow
def test_resolution_scan_and_mesh_may_differ(classifier):
  workdir, expected = classifier
  experiment = build(
    init=str(workdir),
    mesh='data:2,fsdp:2,expert:2',
    model=SIZES | dict(scan=True),
    data=dict(image_size=(16, 12)),
  )
  found = pretrained.params(experiment)
  places = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
  assert places(found) == places(experiment.abstract_params)
  found = jax.tree.map(np.asarray, found['image'])
  blocks = stack.unstack(found['blocks'], experiment.config.model)
  assert_same(blocks, expected['blocks'])
  position = jnp.asarray(expected['patches']['position'])
  np.testing.assert_allclose(
    found['patches']['position'],
    patches.resize_positions(position, (2, 2), (4, 3)),
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    (dict(model=SIZES | dict(width=8)), 'a run whose image/'),
    (dict(model=SIZES | dict(depth=3)), 'a run whose image/blocks/2/'),
    (dict(model=SIZES, init_head='reset'), "'contrastive' knows no head"),
  ],
)
def test_what_does_not_fit_is_one_line(classifier, changes, line):
  with pytest.raises(UserError, match='config.init.*' + line) as error:
    pretrained.params(build(init=str(classifier[0]), **changes))
  assert '\n' not in str(error.value)


@pytest.mark.slow
def test_the_heads_of_both_towers_are_compared(tmp_path):
  workdir = untrained.run(tiny_pairs.config(mesh='data:8'), tmp_path / 'pairs')
  for tower in ('model', 'text'):
    changes = {tower: dict(num_heads=4), 'init': str(workdir)}
    line = f'config.{tower}.num_heads: got 4; 2, as the model of'
    with pytest.raises(UserError, match=line):
      pretrained.params(build(**changes))


def test_a_run_of_another_kind_is_refused(tmp_path):
  workdir = untrained.run(untrained.text(vocab_size=257), tmp_path / 'text')
  line = "a run of the same task, 'contrastive' or 'classification'"
  with pytest.raises(UserError, match=line):
    pretrained.params(build(init=str(workdir), model=SIZES))


def test_a_file_of_another_library_is_the_tower(tmp_path, capsys):
  safetensors = pytest.importorskip('safetensors.numpy')
  named = foreign.draw(foreign.timm()[0])
  safetensors.save_file(named, tmp_path / 'timm.safetensors')
  channels = foreign.CHANNELS
  experiment = build(
    init=str(tmp_path / 'timm.safetensors'),
    model=dict(
      width=foreign.WIDTH,
      depth=foreign.DEPTH,
      mlp_dim=foreign.MLP,
      num_heads=foreign.HEADS,
      patch_size=(foreign.PATCH, foreign.PATCH),
      pool='token',
    ),
    data=dict(
      image_size=(foreign.SIZE, foreign.SIZE),
      channels=channels,
      source=f'fake:8x8x{channels},classes=5',
    ),
  )
  found = pretrained.params(experiment)['image']
  np.testing.assert_array_equal(
    found['patches']['kernel'],
    np.transpose(named['patch_embed.proj.weight'], (2, 3, 1, 0)),
  )
  np.testing.assert_array_equal(
    found['blocks'][1]['mlp']['up']['kernel'],
    named['blocks.1.mlp.fc1.weight'].T,
  )
  assert 'left over: head.bias, head.weight' in capsys.readouterr().err
