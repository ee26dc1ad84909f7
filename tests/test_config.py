"""From a ConfigDict to frozen dataclasses, and what is said when it fails."""

import dataclasses
import json

import pytest

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.tasks import classification, language


def parse(config):
  return config_lib.parse(config, classification.Config)


def changed(path, value):
  """Returns the default ConfigDict with one value, of any type, replaced."""
  config = config_lib.default(classification.Config)
  *groups, field = path.split('.')
  group = config
  for name in groups:
    group = group[name]
  with group.ignore_type(), group.unlocked():
    group[field] = value
  return config


def test_default_parses_to_the_default():
  assert (
    parse(config_lib.default(classification.Config)) == classification.Config()
  )


def test_to_dict_is_json_and_parse_inverts_it():
  config = changed('optimizer.weight_decay', (('.*/kernel', 0.1),))
  config.model.moe.blocks = (2, 3)
  config.data.image_size = (28, 30)
  parsed = parse(config)
  written = json.dumps(config_lib.to_dict(parsed))
  assert parse(json.loads(written)) == parsed


def test_parsed_is_frozen_and_hashable():
  config = parse(changed('model.moe.blocks', [2, 3]))
  assert config.model.moe.blocks == (2, 3)
  assert len({config, classification.Config()}) == 2
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.seed = 1


@pytest.mark.parametrize(
  'path, value, expected',
  [
    ('ema', 0, 0.0),
    ('data.value_range', (0, 1), (0.0, 1.0)),
    ('optimizer.weight_decay', (('a', 1), ['b', 2]), (('a', 1.0), ('b', 2.0))),
  ],
)
def test_int_serves_as_float_at_any_depth(path, value, expected):
  parsed = config_lib.to_dict(parse(changed(path, value)))
  for name in path.split('.'):
    parsed = parsed[name]
  leaf = parsed
  while isinstance(leaf, tuple):
    leaf = leaf[-1]
  assert parsed == expected
  assert type(leaf) is float


@pytest.mark.parametrize(
  'path, value, message',
  [
    ('step', 5, "config.step: got 5; no such field; did you mean 'steps'?"),
    (
      'optimizer.schedule.warm_up',
      5,
      'config.optimizer.schedule.warm_up: got 5; no such field; '
      "did you mean 'warmup'?",
    ),
    (
      'checkpoint.zzz',
      1,
      'config.checkpoint.zzz: got 1; no such field; one of '
      "['best_metric', 'every', 'keep_best', 'keep_every', 'keep_last']",
    ),
    ('steps', '5', "config.steps: got '5'; a value of type int"),
    ('steps', 5.0, 'config.steps: got 5.0; a value of type int'),
    ('steps', True, 'config.steps: got True; a value of type int'),
    ('mesh', 1, 'config.mesh: got 1; a value of type str'),
    ('name', None, 'config.name: got None; a value of type str'),
    ('model', 3, 'config.model: got 3; a value of type ViTConfig'),
    (
      'model.patch_size',
      16,
      'config.model.patch_size: got 16; a value of type tuple[int, int]',
    ),
    (
      'model.patch_size',
      (16,),
      'config.model.patch_size: got (16,); 2 values',
    ),
    (
      'data.image_size',
      (8, 8.5),
      'config.data.image_size[1]: got 8.5; a value of type int',
    ),
    (
      'model.moe.blocks',
      (1, 'last'),
      "config.model.moe.blocks[1]: got 'last'; a value of type int",
    ),
    (
      'optimizer.weight_decay',
      (('kernel', '0.1'),),
      "config.optimizer.weight_decay[0][1]: got '0.1'; a value of type float",
    ),
    (
      'optimizer.weight_decay',
      ('kernel', 0.1),
      "config.optimizer.weight_decay[0]: got 'kernel'; "
      'a value of type tuple[str, float]',
    ),
  ],
)
def test_what_is_wrong_is_named(path, value, message):
  with pytest.raises(UserError) as error:
    parse(changed(path, value))
  assert str(error.value) == message


def test_differences_are_dotted_paths():
  old = classification.Config()
  new = changed('seed', 1)
  new.optimizer.schedule.warmup = 7
  new.model.moe.blocks = (3,)
  assert config_lib.differences(old, parse(new)) == {
    'seed': (0, 1),
    'optimizer.schedule.warmup': (0, 7),
    'model.moe.blocks': ((), (3,)),
  }
  assert config_lib.differences(old, old) == {}


def test_differences_to_another_task_name_it_and_what_one_alone_has():
  one, other = classification.Config(), language.Config()
  found = config_lib.differences(one, other)
  assert found['task'] == ('classification', 'language')
  assert found['mixup'] == (0.0, None)
  assert found['model.tied'] == (None, True)
  assert config_lib.differences(other, one) == {
    field: (new, old) for field, (old, new) in found.items()
  }
