"""Every format's table, against the other library's model in NumPy."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util
from jax import numpy as jnp

from softmoe.models import config as config_lib
from softmoe.models import vit
from softmoe.weights import arrays, save, sizes
from softmoe.weights.formats import registry
from tests.weights import foreign
from tests.weights.reading import read

EXACT = dict(activation='gelu_exact')
CASES = {
  'timm': (foreign.timm(), EXACT | dict(pool='token')),
  'timm-gap': (foreign.timm('gap', layer_scale=True), EXACT),
  'timm-map': (foreign.timm('map'), EXACT | dict(pool='map')),
  'hugging_face': (
    foreign.hugging_face(),
    EXACT | dict(pool='token', norm_epsilon=1e-12),
  ),
  'big_vision': (foreign.flax(foreign.BIG_VISION, 'map'), dict(pool='map')),
  'big_vision-token': (
    foreign.flax(foreign.BIG_VISION, 'token'),
    dict(pool='token'),
  ),
  'big_vision-augreg': (
    foreign.flax(foreign.AUGREG, 'token', representation=6),
    dict(pool='token', representation_size=6),
  ),
  'vmoe': (
    foreign.flax(foreign.VMOE, 'map', moe=True),
    dict(
      pool='map',
      moe=config_lib.MoEConfig(
        blocks=(foreign.DEPTH - 1,),
        num_experts=foreign.EXPERTS,
        slots_per_expert=foreign.SLOTS,
      ),
    ),
  ),
}


def model_config(**fields):
  return config_lib.ViTConfig(
    width=foreign.WIDTH,
    depth=foreign.DEPTH,
    mlp_dim=foreign.MLP,
    num_heads=foreign.HEADS,
    patch_size=(foreign.PATCH, foreign.PATCH),
    **fields,
  )


def make(config):
  return vit.ViT(
    config,
    image_size=(foreign.SIZE, foreign.SIZE),
    channels=foreign.CHANNELS,
    num_classes=foreign.CLASSES,
    rngs=nnx.Rngs(0),
  )


@pytest.mark.parametrize('case', CASES)
def test_logits_are_theirs_and_every_array_counts(case):
  (shapes, theirs), fields = CASES[case]
  config, drawn = model_config(**fields), foreign.draw(shapes)
  form = registry.detect(drawn)
  assert form.name == case.split('-')[0]
  graphdef, state = nnx.split(jax.eval_shape(lambda: make(config)))
  leaves = traverse_util.flatten_dict(nnx.to_pure_dict(state))
  paths = {'/'.join(map(str, path)): path for path in leaves}
  x = foreign.images()
  call = lambda params: nnx.merge(graphdef, params)(jnp.asarray(x))[0]
  forward = jax.jit(call)

  def ours(named):
    file = arrays.File(pathlib.Path('file'), named, {})
    flat = read(file, form, config, paths)
    found = {paths[path]: leaf for path, leaf in flat.items()}
    return forward(traverse_util.unflatten_dict(found))

  before = theirs(drawn, x)
  assert before.std() >= 1
  np.testing.assert_allclose(ours(drawn), before, atol=1e-4, rtol=1e-5)
  for name, array in drawn.items():
    wave = np.cos(np.arange(array.size)).reshape(array.shape)
    changed = drawn | {name: np.asarray(array + 0.3 * wave, np.float32)}
    expected = theirs(changed, x)
    # What is added to all keys alike is nothing to a softmax.
    if not name.endswith(('key/bias', 'key.bias')):
      assert abs(expected - before).max() > 1e-3, name
    np.testing.assert_allclose(
      ours(changed), expected, atol=1e-4, rtol=1e-5, err_msg=name
    )


@pytest.mark.parametrize('case', CASES)
def test_what_is_written_is_what_was_read(case):
  (shapes, theirs), fields = CASES[case]
  if case == 'timm-gap':
    pytest.skip('layer scale is not written again')
  config, drawn = model_config(**fields), foreign.draw(shapes)
  form = registry.detect(drawn)
  file = arrays.File(pathlib.Path('file'), drawn, {})
  rows = form.rows(config, drawn)
  params = read(file, form, config, {r.path for r in rows if r.name in drawn})
  written = save.arrays(form, config, params)
  if case == 'big_vision-augreg':  # written as the newer model
    newer, logits = foreign.flax(foreign.BIG_VISION, 'token', representation=6)
    assert {name: array.shape for name, array in written.items()} == newer
    x = foreign.images()
    np.testing.assert_allclose(logits(written, x), theirs(drawn, x), atol=1e-5)
    return
  assert written.keys() == drawn.keys()
  for name, array in drawn.items():
    np.testing.assert_array_equal(written[name], array, err_msg=name)


@pytest.mark.parametrize('case', CASES)
def test_the_model_is_told_from_the_file(case):
  (shapes, _), fields = CASES[case]
  drawn = foreign.draw(shapes)
  file = arrays.File(pathlib.Path('file'), drawn, {})
  form = registry.detect(drawn)
  found = sizes.config_of(file, form, num_heads=foreign.HEADS)
  expected = model_config(**fields)
  if expected.moe.blocks:
    assert found.model.moe.expert_dim == foreign.MLP
    found_moe, moe = found.model.moe, expected.moe
    assert found_moe.slots_per_expert == moe.slots_per_expert
    assert found_moe.blocks == moe.blocks
  else:
    assert found.model == expected
  assert found.data.image_size == (foreign.SIZE, foreign.SIZE)
  assert found.data.num_classes == foreign.CLASSES
  assert found.data.channels == foreign.CHANNELS
