"""Runs what is missing of a suite, each run in a process of its own."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO

from softmoe.errors import FAILED, STOPPED, UserError
from softmoe.process import launch
from softmoe.tables import folders as folders_lib
from softmoe.tables import page as page_lib
from softmoe.tables import suite as suite_lib

_PAUSE = 0.2  # seconds between two looks at the workers


@dataclasses.dataclass(frozen=True)
class _Worker:
  """A process that does a run.

  Attributes:
    run: that it does.
    place: which share of the cores it has.
    process: its standard input ends with the runner.
    log: what it prints, locked.
    start: of this process in the log.
  """

  run: suite_lib.Run
  place: int
  process: subprocess.Popen
  log: IO[str]
  start: int


class Runner:
  """A queue of runs, and the workers that empty it."""

  def __init__(
    self,
    path: pathlib.Path,
    runs: tuple[suite_lib.Run, ...],
    folders: folders_lib.Folders,
    workers: int,
    page: page_lib.Page,
  ):
    """Looks at what is there.

    Args:
      path: of the suite.
      runs: of it, to be done.
      folders: where everything is kept.
      workers: how many runs are done at once.
      page: tells a person how it goes.
    """
    self._path, self._folders, self._page = path, folders, page
    self._cores = _shares(launch.cores(), workers)
    self._workers: list[_Worker] = []
    self._in_use = 0
    self._waiting = [run for run in runs if self._is_missing(run)]
    self._shared = min(workers, len(self._waiting)) > 1

  def work(self) -> int:
    """Does all runs, whether others fail or not; returns the exit code."""
    with _stopping() as signals:
      while (self._waiting or self._workers) and not signals:
        self._fill()
        self._collect()
        self._page.show()
        time.sleep(_PAUSE)
      if signals:
        self._stop()
    self._page.close()
    if signals:
      print(
        f'{signals[0]}: all workers ended; the same command goes on from there',
        file=sys.stderr,
      )
    if self._page.failed:
      return FAILED
    return STOPPED if signals or self._in_use else 0

  def _is_missing(self, run: suite_lib.Run) -> bool:
    """Tells whether a run is to be done; says so if it cannot be."""
    path = self._folders.result(run.name)
    try:
      config = run.load_config()
      if path.exists():
        folders_lib.check(path, config)
        self._page.found(run.name)
        return False
    except UserError as e:
      self._page.fail(run.name, f'error: {e}')
      return False
    self._page.expect(run.name, config.steps)
    return True

  def _fill(self) -> None:
    """Starts workers while there is work and room."""
    while self._waiting and len(self._workers) < len(self._cores):
      run = self._waiting.pop(0)
      log = self._folders.lock(run.name)
      if log is None:
        self._in_use += 1
        self._page.skip(run.name)
      elif self._folders.result(run.name).exists():  # by another runner
        log.close()
        self._page.found(run.name)
      else:
        self._start(run, log)

  def _start(self, run: suite_lib.Run, log: IO[str]) -> None:
    taken = {worker.place for worker in self._workers}
    place = next(i for i in range(len(self._cores)) if i not in taken)
    folders = self._folders
    command = [
      *(sys.executable, '-m', 'softmoe.tables.worker'),
      *(str(self._path), run.name, str(folders.results), str(folders.runs)),
      *(['--shared'] if self._shared else []),
    ]
    start = log.seek(0, os.SEEK_END)
    with _on(self._cores[place]):
      process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for the runner alone
      )
    self._workers.append(_Worker(run, place, process, log, start))
    self._page.start(run.name, folders.workdir(run.name))

  def _collect(self) -> None:
    """Takes note of workers that ended."""
    for worker in list(self._workers):
      code = worker.process.poll()
      if code is None:
        continue
      self._workers.remove(worker)
      self._forget(worker)
      name = worker.run.name
      if code == 0:
        self._page.finish(name, folders_lib.read(self._folders.result(name)))
      else:
        self._page.fail(name, self._reason(worker, code))

  def _reason(self, worker: _Worker, code: int) -> str:
    """Returns why a worker ended, in one line."""
    if code < 0:
      return f'error: killed by {signal.Signals(-code).name}'
    with self._folders.log(worker.run.name).open() as file:
      file.seek(worker.start)
      lines = [line.strip() for line in file if line.strip()]
    errors = [line for line in lines if line.startswith('error:')]
    return (errors or lines or [f'error: exit code {code}'])[-1]

  def _stop(self) -> None:
    """Lets all workers save what they have."""
    for worker in self._workers:
      worker.process.terminate()
    for worker in self._workers:
      worker.process.wait()
      self._forget(worker)

  def _forget(self, worker: _Worker) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    worker.log.close()


def default_workers() -> int:
  """Returns one a core, or one alone where there is an accelerator."""
  # Asked in another process: this one shall not take hold of the device.
  code = 'import jax; print(jax.default_backend())'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  return len(launch.cores()) if done.stdout.strip() == 'cpu' else 1


def _shares(cores: list[int], workers: int) -> list[list[int]]:
  """Returns the cores of each worker: a part each, or all if they are few."""
  if workers > len(cores):
    return [cores] * workers
  return [cores[i::workers] for i in range(workers)]


@contextlib.contextmanager
def _on(cores: list[int]) -> Iterator[None]:
  """Lets processes that are started in here run on these cores alone."""
  if not hasattr(os, 'sched_setaffinity'):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _stopping() -> Iterator[list[str]]:
  """Yields a list that gets the name of a signal to stop; the second kills."""
  names: list[str] = []
  numbers = signal.SIGTERM, signal.SIGINT

  def note(number, frame):
    del frame
    names.append(signal.Signals(number).name)
    for each in numbers:
      signal.signal(each, signal.SIG_DFL)

  before = {number: signal.signal(number, note) for number in numbers}
  try:
    yield names
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
