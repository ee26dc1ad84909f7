"""Bad values of every config field: one line, exit code 2, nothing written.

The list is generated from the types and ranges that the fields declare, so a
new field is in it by itself.
"""

import copy
import dataclasses
import math
import re
import subprocess
import sys
import typing

import pytest

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.process import launch
from softmoe.ranges import OneOf
from softmoe.tasks import registry
from softmoe.training import loop

CLASSES = {name: registry.find(name).Config for name in registry.TASKS}
# A router's own.
UNCHECKED = tuple(
  f'{tower}.moe.router_options[0][1]' for tower in ('model', 'text')
)


def leaves(hint, path=''):
  """Yields path and type of every value that a config may hold."""
  plain = getattr(hint, '__origin__', hint)
  args = [a for a in typing.get_args(hint) if a is not Ellipsis]
  if dataclasses.is_dataclass(hint):
    for name, inner in config_lib.hints(hint).items():
      yield from leaves(inner, f'{path}.{name}' if path else name)
  elif plain is tuple:
    for i, inner in enumerate(args):
      yield from leaves(inner, f'{path}[{i}]')
  else:
    yield path, hint


def branches(cls, path=''):
  """Yields the paths of a config's dataclasses, each with a dot at its end."""
  yield path
  for name, hint in config_lib.hints(cls).items():
    if dataclasses.is_dataclass(hint):
      yield from branches(hint, f'{path}{name}.')


def ends(hint):
  """Returns the numbers just inside of a field's range, and just outside."""
  (allowed,) = hint.__metadata__
  if isinstance(allowed, OneOf):
    numbers = allowed.numbers
    return numbers, (min(numbers) - 1, max(numbers) + 1)
  step = {int: lambda x, to: x + (1 if to > x else -1), float: math.nextafter}
  step = step[hint.__origin__]
  inside, outside = [], []
  for end, away in ((allowed.low, -math.inf), (allowed.high, math.inf)):
    closed = end != allowed.without
    inside.append(end if closed else step(end, -away))
    outside.append(step(end, away) if closed else end)
  # Below the range there may be 0, which is off.
  return inside, [x for x in outside if not (allowed.off and x == 0)]


def is_number(hint):
  return getattr(hint, '__origin__', hint) in (int, float)


LEAVES = {
  (path, task): hint
  for task, cls in CLASSES.items()
  for path, hint in leaves(cls)
}
NUMBERS = {
  key: hint
  for key, hint in LEAVES.items()
  if is_number(hint) and hasattr(hint, '__metadata__')
}


def bad_values():
  """Yields task, path, value, of which a config takes none."""
  for (path, task), hint in LEAVES.items():
    kind = getattr(hint, '__origin__', hint)
    if (path, task) in NUMBERS:
      for value in ends(hint)[1]:
        yield task, path, value
    if kind is float:
      yield from ((task, path, v) for v in (math.nan, math.inf, -math.inf))
    if path not in UNCHECKED:
      wrong = {str: 5, bool: 2, int: 1.5, float: 'much'}
      yield task, path, wrong[kind]
      yield task, path, None
  for task, cls in CLASSES.items():
    for branch in branches(cls):
      yield task, f'{branch}no_such_field', 1


# By task, as one field or flag would have it; the error names the first.
NAMES = (
  'task',
  'loss',
  'init_head',
  'mesh',
  'optimizer.name',
  'optimizer.schedule.name',
  'checkpoint.best_metric',
  'model.norm',
  'model.activation',
  'model.attention',
  'model.positions',
  'model.dtype',
  'model.param_dtype',
  'model.pool',
  'model.moe.router',
  'model.moe.expert_init',
  'data.source',
  'data.train_split',
  'data.eval_split',
  'data.train.crop',
  'data.eval.crop',
  'data.fingerprint',
)
TOGETHER = (
  ('data.value_range', {'data.value_range': (1, 1)}),
  ('data.value_range', {'data.value_range': (0, -1.0)}),
  ('model.moe.blocks', {'model.moe.blocks': (1, 1)}),
  ('model.moe.blocks', {'model.moe.blocks': (2,)}),
  (
    'model.moe.batch_priority',
    {
      'model.moe.router': 'tokens_choice',
      'model.moe.slots_per_expert': 1,
      'model.moe.batch_priority': True,
    },
  ),
  ('mesh', {'mesh': 'data:²'}),
  ('data.image_size[0]', {'data.image_size': (-8, 8)}),
  ('data.image_size[0]', {'data.image_size': (0, 8)}),
  ('data.batch_size', {'data.batch_size': 2**40}),
  (
    'data.batch_size',
    {
      'data.batch_size': 2**20,
      'data.image_size': (2**14, 2**14),
      'model.patch_size': (2**12, 2**12),
    },
  ),
  ('seed', {'seed': 2**64}),
  ('seed', {'seed': 10**400}),
  (
    'optimizer.weight_decay[0][1]',
    {'optimizer.weight_decay': (('.*', 1e400),)},
  ),
  ('data.value_range[1]', {'data.value_range': (0, 1e308)}),
  ('optimizer.learning_rate', {'optimizer.learning_rate': 10**400}),
)


def change(values, path, value):
  """Puts a value into a nested dict; `a.b[0][1]` is in tuples of the field."""
  *groups, last = re.sub(r'\[.*', '', path).split('.')
  for name in groups:
    values = values[name]
  indices = [int(i) for i in re.findall(r'\[(\d)\]', path)]
  values[last] = wrap(values.get(last, ()), indices, value)


def wrap(old, indices, value):
  """Returns a tuple with the value at that place; inner ones are pairs."""
  if not indices:
    return value
  first, *rest = indices
  items = list(old)
  items[first : first + 1] = [wrap(('.*', 1.0), rest, value)]
  return tuple(items)


def as_dict(tiny, task):
  config = tiny() if task == 'classification' else CLASSES[task]()
  return config_lib.to_dict(config)


@pytest.fixture
def refuse(tmp_path, capfd):
  """Returns a function that asserts that training refuses a config."""

  def refuse(values, field):
    with pytest.raises(SystemExit) as end:
      launch.guard(
        lambda: loop.train(experiment_lib.parse(values), tmp_path / 'run')
      )
    shown = capfd.readouterr()
    assert shown.out == ''
    assert end.value.code == 2, shown.err
    named = rf'error: config\.{re.escape(field)}: got .*; .*\n'
    assert re.fullmatch(named, shown.err), (field, shown.err)
    left = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert not left

  return refuse


def test_every_number_declares_its_range():
  bare = {
    path
    for (path, _), hint in LEAVES.items()
    if is_number(hint) and not hasattr(hint, '__metadata__')
  }
  assert not bare, 'write Annotated[int, Range(...)]'


def test_every_bad_value_is_refused_in_one_line(tiny, refuse):
  defaults = {task: as_dict(tiny, task) for task in CLASSES}
  seen = set()
  for task, path, value in bad_values():
    if (path, repr(value)) in seen:  # of what tasks share
      continue
    seen.add((path, repr(value)))
    values = copy.deepcopy(defaults[task])
    change(values, path, value)
    refuse(values, path)
  assert len(seen) >= 300


def test_the_ends_of_every_range_are_taken(tiny):
  defaults = {task: as_dict(tiny, task) for task in CLASSES}
  for (path, task), hint in NUMBERS.items():
    for value in ends(hint)[0]:
      values = copy.deepcopy(defaults[task])
      change(values, path, value)
      experiment_lib.parse(values)


@pytest.mark.parametrize('path', NAMES)
def test_an_unknown_name_is_refused_in_one_line(tiny, refuse, path):
  values = as_dict(tiny, 'classification')
  change(values, path, 'nope')
  refuse(values, path)


@pytest.mark.parametrize(('field', 'changes'), TOGETHER)
def test_what_does_not_go_together_is_refused(tiny, refuse, field, changes):
  values = as_dict(tiny, 'classification')
  for path, value in changes.items():
    change(values, path, value)
  refuse(values, field)


COMMANDS = (
  ('config.model.moe.expert_dim', '--config.model.moe.expert_dim=-1'),
  ('config.model.moe.shared_dim', '--config.model.moe.shared_dim=-1'),
  ('config.data.channels', '--config.data.channels=0'),
  ('config.seed', '--config.seed=99999999999999999999999'),
  ('config.mesh', '--config.mesh=data:²'),
  ('config.data.batch_size', '--config.data.batch_size=100000000000'),
  ('config.optimizer.learning_rate', '--config.optimizer.learning_rate=inf'),
  ('config.optimizer.clip_norm', '--config.optimizer.clip_norm=nan'),
  ('config.mixup', '--config.mixup=inf'),
  (
    'config.optimizer.weight_decay[0][1]',
    "--config.optimizer.weight_decay=(('.*',1e400),)",
  ),
  ('config.data.value_range[1]', '--config.data.value_range=(0,1e308)'),
  ('config.data.value_range', '--config.data.value_range=(1,1)'),
  ('config.checkpoint.best_metric', '--config.checkpoint.best_metric=nope'),
  ('config.data.train.padding', '--config.data.train.padding=1000000'),
  (
    'config.data.train.randaugment_magnitude',
    '--config.data.train.randaugment_magnitude=100000',
  ),
  (
    'config.model.moe.capacity_factor',
    '--config.model.moe.capacity_factor=1e30',
  ),
  ('config.model.moe.blocks', '--config.model.moe.blocks=(1,1)'),
  ('config.data.image_size[0]', '--config.data.image_size=(-8,8)'),
  ('join_seconds', '--join_seconds=-5'),
  ('cpu_devices', '--cpu_devices=100000'),
  ('config.data.train_split', '--config.data.train_split=trian'),
)


@pytest.mark.slow
@pytest.mark.parametrize(('field', 'flag'), COMMANDS)
def test_a_command_refuses_it_too(environment, tmp_path, field, flag):
  command = [sys.executable, 'train.py', '--config=tests/tiny.py:soft']
  command += ['--cpu_devices=1', f'--workdir={tmp_path / "run"}', flag]
  done = subprocess.run(
    command,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, ''), done.stderr
  assert re.fullmatch(r'error: .*\n', done.stderr), done.stderr
  assert field in done.stderr
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]
