"""A trace of some steps, and the table that is made of it."""

import contextlib
import dataclasses
from unittest import mock

import jax
import pytest

from softmoe.costs import parts
from softmoe.errors import UserError
from softmoe.tables import profile
from softmoe.training import loop
from softmoe.training import profile as trace_lib

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
    parts.REST: (0.25, 0),
  }
  lines = profile.table(found).splitlines()
  names = [line.split(' | ')[0].strip('| ') for line in lines[2:]]
  assert names == ['mlp', 'experts', parts.REST, 'all']
  assert '87.0 %' in lines[2] and '100.0 %' in lines[-1]


@pytest.mark.slow
def test_steps_are_profiled(tiny, one_device, tmp_path, capsys):
  config = tiny(profile=(2, 3), mesh='data:1,expert:1', steps=4)
  loop.train(config, tmp_path / 'run')
  capsys.readouterr()
  profile.main([str(tmp_path / 'run')])
  printed = capsys.readouterr().out
  for part in ('attention', 'mlp', 'router', 'experts', 'optimizer'):
    assert f'\n| {part} ' in printed
  assert (tmp_path / 'run/profile/steps.json').read_text() == '2'
  # To profile or not is no other run.
  loop.train(dataclasses.replace(config, profile=()), tmp_path / 'run')


def test_a_run_that_goes_on_among_the_steps(tmp_path):
  step = jax.jit(lambda x: x + 1)
  traced = trace_lib.Profile((2, 5), tmp_path, contextlib.nullcontext)
  for number in (4, 5, 6):  # of a run that was saved at 3
    traced.before(number, step, 1.0)
    traced.after(number, step(1.0))
  assert (tmp_path / 'profile/steps.json').read_text() == '2'


def test_a_profile_is_no_training_and_training_no_pause(tmp_path, monkeypatch):
  clock, seen = ['runs'], []

  @contextlib.contextmanager
  def pause():
    clock.append('stands')
    yield
    clock.pop()

  def tell(name):
    return lambda *_: seen.append((name, clock[-1]))

  for name in ('start_trace', 'stop_trace'):
    monkeypatch.setattr(jax.profiler, name, tell(name))
  monkeypatch.setattr(jax, 'block_until_ready', tell('step'))
  program = mock.Mock(as_text=lambda: 'program')
  compiled = mock.Mock(compile=lambda: tell('compile')() or program)
  step = mock.Mock(lower=lambda _: compiled)
  traced = trace_lib.Profile((2, 2), tmp_path, pause)
  for number in (1, 2, 3):
    traced.before(number, step, 1.0)
    traced.after(number, 1.0)
  assert seen == [
    ('step', 'runs'),
    ('compile', 'stands'),
    ('start_trace', 'stands'),
    ('step', 'runs'),
    ('stop_trace', 'stands'),
  ]


def test_without_a_profile(finished):
  with pytest.raises(UserError, match='--config.profile'):
    profile.read(finished[0])


def test_a_torn_trace(tmp_path):
  (tmp_path / 'profile').mkdir()
  (tmp_path / 'profile' / 'train_step.txt').write_text(PROGRAM)
  (tmp_path / 'profile' / 'steps.json').write_text('2')
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
