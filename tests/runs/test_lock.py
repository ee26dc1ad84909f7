"""A lock is of one process, and goes with it."""

import errno
import fcntl
import os
import subprocess
import sys

from softmoe.runs import lock

HOLD = """
import sys, time
from softmoe.runs import lock
file = lock.take(__import__('pathlib').Path(sys.argv[1]))
print(file is not None, flush=True)
time.sleep(600)
"""


def test_a_lock_is_of_one_and_may_be_asked_after(tmp_path):
  path = tmp_path / 'lock'
  assert not lock.is_taken(path)
  assert not path.exists()
  with lock.take(path):
    assert lock.is_taken(path)
    assert lock.take(path) is None
  assert not lock.is_taken(path)
  assert lock.take(path)


def test_a_lock_goes_with_a_process_that_is_killed(tmp_path):
  command = [sys.executable, '-c', HOLD, str(tmp_path / 'lock')]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == 'True\n'
    assert lock.take(tmp_path / 'lock') is None
    process.kill()
  assert lock.take(tmp_path / 'lock')


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
  def flock(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with lock.take(tmp_path / 'lock'):
    assert not lock.is_taken(tmp_path / 'lock')
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'warning: no lock on {tmp_path}/lock: Function not')
