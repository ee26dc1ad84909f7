"""Trainings that a campaign starts, and hits.

Each process of a job is a fork of the campaign, which has imported all that a
training needs but used none of it: so a start takes a second or two, and is
`train.py` with its flags from there on, exit handlers included.
"""

import atexit
import os
import pathlib
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback

from softmoe import experiment  # noqa: F401, before any fork
from softmoe.commands import train
from softmoe.runs import load  # noqa: F401
from softmoe.tasks import classification  # noqa: F401
from softmoe.training import loop  # noqa: F401

DEVICES = 4
PATIENCE = 900  # seconds for what takes a few, on a busy machine
FLAGS = [
  '--config=tests/tiny.py:soft',
  '--config.mesh=data:2,expert:2',
  '--config.steps=16',
  '--config.log_every=1',
  '--config.eval_every=4',
  '--config.checkpoint.every=2',
  '--config.data.source=fake:8x8x1',
  '--config.data.train.crop=none',
  '--config.model.depth=1',
  '--config.model.moe.blocks=(0,)',
]
_OF_MANY = ['--heartbeat_seconds=5', '--join_seconds=30']


class Fork:
  """A fork that runs a function, and what it prints."""

  def __init__(self, function, limit=None):
    """Starts it.

    Args:
      function: what it does; its exit code is 0 if that returns.
      limit: the largest file that it may write, in bytes.
    """
    number, path = tempfile.mkstemp(prefix='campaign.')
    self._printed, self._code = pathlib.Path(path), None
    self.pid = os.fork()
    if self.pid == 0:
      os.dup2(number, 1)
      os.dup2(number, 2)
      if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
      _leave(_code(function))
    os.close(number)

  def send(self, number):
    """Sends a signal, if it has not ended."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def poll(self):
    """Returns the exit code, minus the signal of one that was killed."""
    if self._code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      self._code = os.waitstatus_to_exitcode(status) if pid else None
    return self._code

  def wait(self):
    """Returns the exit code, or 'hang' if it had to be killed for it."""
    deadline = time.monotonic() + PATIENCE
    while self.poll() is None:
      if time.monotonic() > deadline:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._code = 'hang'
      time.sleep(0.01)
    return self._code

  def printed(self):
    """Returns what it printed."""
    return self._printed.read_text()

  def forget(self):
    """Removes what it printed."""
    self._printed.unlink()


def start(count, workdir, limit=None):
  """Returns the `count` processes of a job that trains in `workdir`."""
  flags = [*FLAGS, f'--workdir={workdir}', f'--cpu_devices={DEVICES // count}']
  if count > 1:
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    flags += [*_OF_MANY, f'--coordinator=127.0.0.1:{port}']
    flags += [f'--num_processes={count}']
  own = lambda i: [*flags, f'--process_id={i}'] if count > 1 else flags
  return [Fork(_training(own(i)), limit) for i in range(count)]


def _training(flags):
  def run():
    sys.argv = ['train.py', *flags]
    train.run()

  return run


def _code(function):
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    function()
  except SystemExit as e:
    return e.code or 0
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def _leave(code):
  """Does what an interpreter does at its end, but for the campaign's part."""
  threading._shutdown()
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
