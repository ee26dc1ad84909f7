"""A trace of some steps, and the table that is made of it."""

import json

import pytest

from softmoe.errors import UserError
from softmoe.tables import profile
from softmoe.training import loop

PROGRAM = """
  %dot.1 = f32[2]{0} dot(f32[2]{0} %a), metadata={op_name="jit(s)/mlp/dot"}
  ROOT %dot.2 = f32[2]{0} dot(%a), metadata={op_name="transpose(jvp(mlp))/x"}
  %exp = f32[] exponential(%b), metadata={op_name="exchange/experts/mlpx/e"}
  %copy.3 = f32[] copy(f32[] %c)
  %while.1 = (f32[]) while((f32[]) %d), metadata={op_name="experts/while"}
"""


def event(instruction, microseconds):
  return {'ph': 'X', 'dur': microseconds, 'args': {'hlo_op': instruction}}


def test_time_is_of_the_innermost_part():
  events = [event('dot.1', 2000), event('dot.1', 2000), event('dot.2', 6000)]
  events += [event('exp', 1000), event('copy.3', 500), event('while.1', 9e6)]
  events += [event('of another program', 7), {'ph': 'M'}]
  found = profile.parts(PROGRAM, events, steps=2)
  assert found == {
    'mlp': (2, 3),
    'experts': (0.5, 0),
    profile.REST: (0.25, 0),
  }
  lines = profile.table(found, 1).splitlines()
  assert [line.split()[1] for line in lines[2:]] == ['mlp', 'all']
  assert '87.0 %' in lines[2] and '100.0 %' in lines[3]


def test_steps_are_profiled(tiny, one_device, tmp_path, capsys):
  config = tiny(profile=(2, 3), mesh='data:1,expert:1', steps=4)
  loop.train(config, tmp_path / 'run')
  capsys.readouterr()
  profile.main([str(tmp_path / 'run')])
  printed = capsys.readouterr().out
  for part in ('attention', 'mlp', 'router', 'experts', 'optimizer'):
    assert f'\n| {part} ' in printed
  # A step that is past is none; and to profile or not is no other run.
  loop.train(config, tmp_path / 'run')


def test_without_a_profile(finished):
  with pytest.raises(UserError, match='--config.profile'):
    profile.read(finished[0])


def test_a_torn_trace(tmp_path):
  (tmp_path / 'profile').mkdir()
  (tmp_path / 'config.json').write_text(json.dumps({'profile': [1, 2]}))
  (tmp_path / 'profile' / 'train_step.txt').write_text(PROGRAM)
  (tmp_path / 'profile' / 'a.trace.json.gz').write_bytes(b'\x1f\x8b torn')
  with pytest.raises(UserError, match='a trace'):
    profile.read(tmp_path)


@pytest.mark.parametrize('steps', [(3,), (4, 2), (1, 2, 3)])
def test_bad_steps(tiny, one_device, tmp_path, steps):
  with pytest.raises(UserError, match='config.profile'):
    loop.train(tiny(profile=steps), tmp_path / 'run')
  assert not (tmp_path / 'run').exists() or not list(
    (tmp_path / 'run').iterdir()
  )
