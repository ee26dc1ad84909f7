"""The launcher: its environment, and errors as one line and an exit code."""

import os
import signal
import sys
import types

import jax
import pytest

from softmoe.errors import BAD_INPUT, FAILED, Diverged, Stopped, UserError
from softmoe.process import launch, preemption


class Replaced(Exception):
  """Stands for the end of this process: `exec` does not return."""


@pytest.fixture
def replaced(monkeypatch):
  """Returns the environment of a process on Linux, and what replaces it."""
  calls, environment = [], {}

  def execv(path, argv):
    calls.append((path, argv))
    raise Replaced

  monkeypatch.setattr(launch.sys, 'platform', 'linux')
  monkeypatch.setattr(launch.os, 'environ', environment)
  monkeypatch.setattr(launch.os, 'execv', execv)
  return environment, calls


@pytest.mark.parametrize(
  'platforms, wanted',
  [(None, None), ('cuda', 'cuda,cpu'), ('cpu', None), ('tpu,cpu', None)],
)
def test_a_cpu_is_beside_an_accelerator(monkeypatch, platforms, wanted):
  updates = {}
  config = types.SimpleNamespace(
    values={'jax_platforms': platforms}, update=updates.__setitem__
  )
  monkeypatch.setattr(jax, 'config', config)
  launch.use_cores(2)
  expected = {'jax_platforms': wanted} if wanted else {}
  assert updates == {'jax_num_cpu_devices': 2} | expected


@pytest.mark.parametrize(
  'argv',
  [
    ['python', 'train.py', '--config=a b.py:x', "--config.name='q'"],
    ['python3', '-m', 'softmoe.tool', '--', '-x'],
    ['python', '-X', 'dev', '-W', 'error', 'train.py'],
  ],
)
def test_heap_starts_the_same_command_again_once(replaced, monkeypatch, argv):
  environment, calls = replaced
  monkeypatch.setattr(launch.sys, 'orig_argv', argv)
  with pytest.raises(Replaced):
    launch.keep_heap()
  assert calls == [(sys.executable, [sys.executable, *argv[1:]])]
  assert environment['GLIBC_TUNABLES'] == launch.HEAP
  launch.keep_heap()
  assert len(calls) == 1


def test_heap_keeps_other_settings(replaced):
  environment, _ = replaced
  environment['GLIBC_TUNABLES'] = 'glibc.malloc.check=3'
  with pytest.raises(Replaced):
    launch.keep_heap()
  assert environment['GLIBC_TUNABLES'] == (
    f'glibc.malloc.check=3:{launch.HEAP}'
  )


def test_heap_can_be_turned_off(replaced):
  environment, calls = replaced
  environment['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=0'
  launch.keep_heap()
  assert not calls


def test_heap_is_for_linux(replaced, monkeypatch):
  environment, calls = replaced
  monkeypatch.setattr(launch.sys, 'platform', 'darwin')
  launch.keep_heap()
  assert not calls
  assert 'GLIBC_TUNABLES' not in environment


@pytest.mark.parametrize(
  ('given', 'share'),
  [
    ({}, str(launch.GPU_SHARE)),
    ({'XLA_CLIENT_MEM_FRACTION': ''}, str(launch.GPU_SHARE)),
    ({'XLA_CLIENT_MEM_FRACTION': '.5'}, '.5'),
    ({'XLA_PYTHON_CLIENT_MEM_FRACTION': '.5'}, None),  # both are an error
  ],
)
def test_a_share_of_a_gpu_that_is_set_stays(monkeypatch, given, share):
  environment = dict(given)
  monkeypatch.setattr(launch.os, 'environ', environment)
  launch.share_gpus()
  assert environment.get('XLA_CLIENT_MEM_FRACTION') == share


@pytest.mark.parametrize(
  ('error', 'code', 'text'),
  [
    (
      UserError('config.steps', -1, 'at least\n 1'),
      2,
      'error: config.steps: got -1; at least 1\n',
    ),
    (
      Diverged('loss at step 3 is nan'),
      1,
      'error: loss at step 3 is nan\n',
    ),
    (
      Stopped('SIGTERM', 7),
      75,
      'SIGTERM: saved step 7; the same command goes on from there\n',
    ),
  ],
)
def test_an_error_is_one_line_and_a_code(capsys, error, code, text):
  def main():
    raise error

  with pytest.raises(SystemExit) as e:
    launch.guard(main)
  assert e.value.code == code
  assert capsys.readouterr() == ('', text)


def test_a_bug_keeps_its_traceback(capsys):
  def main():
    raise ZeroDivisionError

  with pytest.raises(SystemExit) as e:
    launch.guard(main)
  assert e.value.code == FAILED
  assert 'Traceback' in capsys.readouterr().err


def test_a_stop_signal_is_noted_and_a_second_one_kills():
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with preemption.StopSignal() as stop:
    assert stop.after_step() == ''
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.after_step() == 'SIGINT'
    for number in (signal.SIGTERM, signal.SIGINT):
      assert signal.getsignal(number) == signal.SIG_DFL
  after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  assert after == before


@pytest.mark.parametrize(
  'error',
  [
    MemoryError(),
    MemoryError('Unable to allocate 9 TiB'),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes'),
  ],
)
def test_too_little_memory_is_one_line(error, capsys):
  def main():
    raise error

  with pytest.raises(SystemExit) as end:
    launch.guard(main)
  assert end.value.code == BAD_INPUT
  shown = capsys.readouterr().err
  assert shown.startswith('error: out of memory, of which a smaller batch')
  assert str(error) in shown and shown.count('\n') == 1
