"""Parameters of every named size, counted without making one."""

import dataclasses
import runpy

import jax
import pytest

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.models import config as model_config
from softmoe.models import vit
from softmoe.tasks import classification

JFT = runpy.run_path('configs/jft4b.py')


@pytest.fixture(autouse=True)
def one_device():
  """Puts a mesh in force, which `build` replaces, and takes it away."""
  device = jax.devices()[:1]
  with jax.set_mesh(sharding.make_mesh('data:1', device)):
    yield device


def count(config, device):
  return experiment_lib.build(config, device).num_params()


@pytest.mark.parametrize(
  'argument, millions',
  [
    ('vit-s16', 33.1),
    ('vit-b16', 108.6),
    ('vit-l16', 333.6),
    ('vit-h14', 668.7),
    ('soft-s16', 933.7),
    ('soft-s14', 1841.4),
    ('soft-b16', 3707.6),
    ('soft-l16', 13127.2),
    ('soft-h14', 54177.4),
  ],
)
def test_paper_sizes(one_device, argument, millions):
  # The counts of models built with the authors' code. Their ViTs' agree with
  # the paper's 33, 108, 333 and 669 M, their Soft MoEs' with its 933 M, 1.8,
  # 3.7, 13.1 and 54.1 B.
  config = experiment_lib.parse(JFT['get_config'](argument))
  assert round(count(config, one_device) / 1e6, 1) == millions


# With class token and 1000 classes at 224 pixels, as they are published.
PUBLISHED = {
  'Ti/16': 5_717_416,
  'S/16': 22_050_664,
  'S/32': 22_878_952,
  'B/16': 86_567_656,
  'B/32': 88_224_232,
  'L/16': 304_326_632,
  'H/14': 632_045_800,
}


def imagenet(name):
  config = config_lib.default(classification.Config)
  config.data.update(image_size=(224, 224), channels=3, num_classes=1000)
  config.model.update(vit.variant(name) | {'pool': 'token', 'scan': True})
  return experiment_lib.parse(config)


@pytest.mark.parametrize('name, params', PUBLISHED.items())
def test_published_sizes(one_device, name, params):
  assert count(imagenet(name), one_device) == params


@pytest.mark.parametrize('size', vit.SIZES)
def test_every_size_by_formula(one_device, size):
  width, depth, mlp_dim, _ = vit.SIZES[size]
  linear = lambda fan_in, fan_out: fan_in * fan_out + fan_out
  attention = 4 * linear(width, width)
  mlp = linear(width, mlp_dim) + linear(mlp_dim, width)
  embedding = linear(14 * 14 * 3, width) + (1 + 256 + 1) * width
  head = 2 * width + linear(width, 1000)
  expected = embedding + depth * (attention + mlp + 4 * width) + head
  assert count(imagenet(f'{size}/14'), one_device) == expected


@pytest.mark.slow
def test_scan_changes_no_count(one_device):
  config = experiment_lib.parse(JFT['get_config']('soft-s16'))
  assert config.model.scan
  model = dataclasses.replace(config.model, scan=False)
  plain = dataclasses.replace(config, model=model)
  assert count(plain, one_device) == count(config, one_device)


def test_every_part_of_a_soft_block_is_counted(one_device):
  config = experiment_lib.parse(JFT['get_config']('soft-s16'))
  dense = dataclasses.replace(config.model, moe=model_config.MoEConfig())
  vit_params = count(dataclasses.replace(config, model=dense), one_device)
  mlp = 384 * 1536 + 1536 + 1536 * 384 + 384
  router = 384 * 128 + 1
  extra = count(config, one_device) - vit_params
  assert extra == 6 * (127 * mlp + router)
