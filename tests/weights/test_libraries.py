"""Logits equal those of timm and of Hugging Face, there and back.

Every parameter is drawn at random: what is zero or one at the start would hide
a wrong map.
"""

import functools

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.models import vit
from softmoe.tasks import classification, language
from softmoe.weights import arrays, card, pretrained, save
from softmoe.weights.formats import registry
from softmoe.weights.source import flat
from tests.weights.reading import read

REASON = 'needs the extra: pip install .[libraries]'
torch = pytest.importorskip('torch', reason=REASON)
timm = pytest.importorskip('timm', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)

TINY = dict(width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=(4, 4))
CLASSES = 7
TOLERANCE = 1e-4


def draw(model, seed=0):
  """Draws every parameter so that logits are of the order of 1."""
  generator = torch.Generator().manual_seed(seed)
  for name, w in model.named_parameters():
    noise = torch.randn(w.shape, generator=generator)
    fan_in = w[0].numel() if w.ndim in (2, 4) else 1
    scale = fan_in**-0.5 if fan_in > 1 else 0.3
    is_norm = 'norm' in name or 'ln_' in name
    is_head = 'head' in name or 'classifier' in name
    offset = 1.0 if is_norm and name.endswith('weight') else 0.0
    w.data = offset + (3 if is_head else 1) * scale * noise
  return model.eval()


def images(size, count=2):
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, *size, 3)).astype(np.float32)


def answer(model, x):
  """Returns the logits of a torch model that takes channels first."""
  with torch.no_grad():
    y = model(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
  return getattr(y, 'logits', y).numpy()


def config(size, classes=CLASSES, init='', **fields):
  model = {'activation': 'gelu_exact'} | fields
  raw = config_lib.default(classification.Config)
  raw.update(init=init, mesh='data:1')
  raw.model.update(model)
  raw.data.update(image_size=size, channels=3, num_classes=classes)
  return experiment_lib.parse(raw)


def build(config):
  return experiment_lib.build(config, jax.devices()[:1])


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, x):
  return nnx.merge(graphdef, params)(x)[0]


def ours(config, x):
  """Returns parameters and logits of a run that starts from `config.init`."""
  experiment = build(config)
  params = pretrained.params(experiment)
  return params, np.asarray(
    forward(experiment.graphdef, params, jnp.asarray(x))
  )


def export(config, params, form, out):
  """Writes parameters under the names of a format."""
  form = registry.find('--to', form)
  form.refuse(config)
  task = build(config).task
  leaves = traverse_util.flatten_dict(task.exchange(params))
  flat = {'/'.join(map(str, p)): np.asarray(x) for p, x in leaves.items()}
  named = save.arrays(form, config.model, flat)
  text = card.card(form, config, 'a test', len(flat), {})
  save.write_folder(out, form, named, form.config(config), text)
  return out


def write(model, folder):
  """Writes a timm model as its library does."""
  from safetensors.torch import save_file

  folder.mkdir()
  save_file(model.state_dict(), str(folder / 'model.safetensors'))
  return folder


def assert_equal(found, expected):
  assert expected.std() >= 1
  np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def timm_model(name='vit_base_patch16_224', **options):
  return draw(timm.create_model(name, num_classes=CLASSES, **options))


def tiny_timm(**options):
  return timm_model(
    img_size=8,
    patch_size=4,
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_ratio=2,
    **options,
  )


POOLS = {
  'token': {},
  'gap': dict(class_token=False, global_pool='avg', fc_norm=False),
  'map': dict(class_token=False, global_pool='map'),
}


@pytest.mark.parametrize('pool', POOLS)
def test_tiny_timm(tmp_path, pool):
  """Also with layer scale, and there and back."""
  x = images((8, 8))
  model = tiny_timm(**POOLS[pool], init_values=1e-5)
  fields = TINY | dict(pool=pool)
  start = config((8, 8), init=str(write(model, tmp_path / 'in')), **fields)
  params, found = ours(start, x)
  expected = answer(model, x)
  assert_equal(found, expected)
  out = export(start, params, 'timm', tmp_path / 'out')
  again = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
  assert_equal(answer(again, x), expected)


def test_any_array_counts(tmp_path):
  """Changing one is noticed, and the logits are equal again."""
  x = images((8, 8))
  model = tiny_timm()
  experiment = build(config((8, 8), **TINY, pool='token'))
  paths = {'/'.join(map(str, p)): p for p in flat(experiment.abstract_params)}
  before, generator = answer(model, x), torch.Generator().manual_seed(1)
  for i, (name, w) in enumerate(model.named_parameters()):
    w.data += 0.3 * torch.randn(w.shape, generator=generator)
    file = arrays.open_file(write(model, tmp_path / str(i)))
    form = registry.detect(file.arrays)
    found = read(file, form, experiment.config.model, paths)
    params = traverse_util.unflatten_dict(
      {paths[p]: jnp.asarray(leaf) for p, leaf in found.items()}
    )
    expected = answer(model, x)
    assert abs(expected - before).max() > 10 * TOLERANCE, name
    logits = forward(experiment.graphdef, params, jnp.asarray(x))
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, err_msg=name)
    before = expected


def test_layers_that_we_lack_are_named(tmp_path):
  for name, options, words in (
    ('registers', dict(reg_tokens=2), 'register tokens (reg_token)'),
    (
      'fc_norm',
      dict(class_token=False, global_pool='avg'),
      'a norm after the pooling (fc_norm.',
    ),
  ):
    folder = write(tiny_timm(**options), tmp_path / name)
    pool = 'token' if name == 'registers' else 'gap'
    start = config((8, 8), init=str(folder), **TINY, pool=pool)
    with pytest.raises(UserError) as error:
      pretrained.params(build(start))
    assert error.value.field == 'config.init' and words in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'options', 'variant', 'pool'),
  [
    ('vit_base_patch16_224', {}, 'B/16', 'token'),
    ('vit_small_patch32_224', {}, 'S/32', 'token'),
    ('vit_small_patch16_224', POOLS['gap'], 'S/16', 'gap'),
  ],
)
def test_timm(tmp_path, name, options, variant, pool):
  x = images((224, 224))
  model = timm_model(name, **options)
  folder = write(model, tmp_path / 'in')
  fields = vit.variant(variant) | dict(pool=pool)
  start = config((224, 224), init=str(folder), **fields)
  params, found = ours(start, x)
  expected = answer(model, x)
  assert_equal(found, expected)
  out = export(start, params, 'timm', tmp_path / 'out')
  again = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
  assert_equal(answer(again, x), expected)


def hugging_face_model(**options):
  made = transformers.ViTConfig(num_labels=CLASSES, **options)
  return draw(transformers.ViTForImageClassification(made))


@pytest.mark.parametrize(
  ('size', 'fields', 'options'),
  [
    (
      8,
      TINY,
      dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=4,
      ),
    ),
    pytest.param(224, vit.variant('B/16'), {}, marks=pytest.mark.slow),
  ],
)
def test_hugging_face(tmp_path, size, fields, options):
  x = images((size, size))
  model = hugging_face_model(**options)
  model.save_pretrained(tmp_path / 'in')
  start = config(
    (size, size),
    init=str(tmp_path / 'in'),
    **fields,
    pool='token',
    norm_epsilon=1e-12,
  )
  params, found = ours(start, x)
  expected = answer(model, x)
  assert_equal(found, expected)
  out = export(start, params, 'hugging_face', tmp_path / 'out')
  again = transformers.ViTForImageClassification.from_pretrained(out).eval()
  assert_equal(answer(again, x), expected)


@pytest.mark.parametrize('tied', [True, False])
def test_gpt2(tmp_path, tied):
  made = transformers.GPT2Config(
    vocab_size=259,
    n_positions=16,
    n_embd=32,
    n_layer=2,
    n_head=2,
    layer_norm_epsilon=1e-5,
    tie_word_embeddings=tied,
  )
  model = draw(transformers.GPT2LMHeadModel(made))
  model.save_pretrained(tmp_path / 'in')
  raw = config_lib.default(language.Config)
  raw.update(init=str(tmp_path / 'in'), mesh='data:1')
  raw.data.update(length=16, tokenizer='bytes')
  raw.model.update(
    width=32,
    depth=2,
    mlp_dim=128,
    num_heads=2,
    vocab_size=259,
    tied=tied,
    norm_epsilon=1e-5,
  )
  start = experiment_lib.parse(raw)
  experiment = build(start)
  params = pretrained.params(experiment)
  tokens = np.random.default_rng(0).integers(0, 259, (2, 16)).astype(np.int32)

  def logits(params):
    model = nnx.merge(experiment.graphdef, params)
    return model.logits(model(jnp.asarray(tokens))[0])

  with torch.no_grad():
    expected = model(torch.from_numpy(tokens).long()).logits.numpy()
  assert_equal(np.asarray(jax.jit(logits)(params)), expected)
  out = export(experiment.task.config, params, 'gpt2', tmp_path / 'out')
  again = transformers.GPT2LMHeadModel.from_pretrained(out).eval()
  with torch.no_grad():
    found = again(torch.from_numpy(tokens).long()).logits.numpy()
  assert_equal(found, expected)
