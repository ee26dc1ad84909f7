"""What a campaign does to trainings, and what it then asks of them."""

import collections
import os
import random
import re
import shutil
import signal
import subprocess
import time

from tests.campaign import folders, jobs, judge

_STOPPED, _REFUSED, _FAILED = 75, 2, 1


class Campaign:
  """Runs, in one folder, and what became of them.

  Attributes:
    counts: what was done, and what was wrong.
    notes: of everything that was wrong.
  """

  def __init__(self, folder, seed, processes):
    """Trains once for each number of processes, undisturbed."""
    self._folder, self._chance = folder, random.Random(seed)
    self._next = 0
    self.counts, self.notes = collections.Counter(), []
    self._wanted, self._finished, self._current = {}, {}, {}
    self._seconds, self._bytes = {}, {}
    for count in processes:
      self._train_undisturbed(count)

  def kill(self, count):
    """Hits a job at a random moment; the next start goes on."""
    workdir = self._current.setdefault(count, self._new())
    job = jobs.start(count, workdir)
    phase = self._wait_for_a_moment(count, job, workdir)
    number = self._chance.choice([signal.SIGKILL, signal.SIGTERM])
    if any(process.poll() is None for process in job):
      victims = self._chance.choice([job, [self._chance.choice(job)]])
      for process in victims:
        process.send(number)
      self.counts[f'{number.name} to {count}'] += 1
      self.counts[f'hit {phase}'] += 1
      if len(victims) < count and number == signal.SIGKILL:
        self.counts['dead peers'] += 1
    allowed = {0, _STOPPED, -signal.SIGKILL, -signal.SIGTERM}
    gave_up = 'error: gave up: ' in job[0].printed()
    self._judge(job, allowed | ({_FAILED} if gave_up else set()))
    if (workdir / 'result.json').exists():
      self._compare(count, self._current.pop(count))

  def fill(self, count):
    """Trains on a disk that is full after a random number of bytes."""
    workdir = self._new()
    size = self._chance.randrange(self._bytes[count])
    with _disk(workdir, size) as (limit, make_room):
      job = jobs.start(count, workdir, limit)
      self._judge(job, {0, _FAILED}, line='could not be written')
      self.counts['full disks'] += any(p.poll() == _FAILED for p in job)
      make_room()
      self._finish(count, workdir)

  def start_twice(self, count):
    """Starts a job twice; one trains, and the other says so."""
    workdir = self._new()
    first = jobs.start(count, workdir)
    time.sleep(self._chance.uniform(0, self._seconds[count]))
    second = jobs.start(count, workdir)
    self._judge([*first, *second], {0, _REFUSED}, line='no other process')
    self.counts['double starts'] += 1
    codes = [{p.poll() for p in job} for job in (first, second)]
    if {0} not in codes:
      self._wrong('nobody trained', first)
    self._finish(count, workdir)

  def flip(self, count, flips=20):
    """Flips bits of the last checkpoint of a finished run."""
    seed = self._chance.randrange(2**32)
    found = judge.damage(self._finished[count], flips, seed)
    for name, number in found.items():
      self.counts[f'flips {name}'] += number

  def _train_undisturbed(self, count):
    workdir, start = self._new(), time.monotonic()
    job = jobs.start(count, workdir)
    self._judge(job, {0})
    assert not self.notes, self.notes
    self._seconds[count] = time.monotonic() - start
    self._bytes[count] = _size(workdir) * 3 // 2  # a save needs more for a time
    self._wanted[count] = judge.outcome(workdir)
    self._finished[count] = workdir

  def _finish(self, count, workdir):
    self._judge(jobs.start(count, workdir), {0})
    self._compare(count, workdir)

  def _compare(self, count, workdir):
    self.counts['finished'] += 1
    if not (workdir / 'result.json').exists():
      self._wrong('no result', [])
    elif judge.outcome(workdir) != self._wanted[count]:
      self._wrong('mismatches', [])
      return  # it stays, to be looked at
    shutil.rmtree(workdir, ignore_errors=True)

  def _judge(self, job, allowed, line='error: '):
    """Waits for all processes, and looks at their codes and lines."""
    self.counts['starts'] += 1
    if {process.wait() for process in job} & {_REFUSED, _FAILED}:
      allowed = allowed | {_STOPPED}  # of those that hear of it too late
    for process in job:
      code, printed = process.wait(), process.printed()
      if code == 'hang':
        self._wrong('hangs', [process])
      elif code not in allowed:
        self._wrong('wrong codes', [process])
      elif 'Traceback' in printed:
        self._wrong('tracebacks', [process])
      elif code in (_FAILED, _REFUSED):
        lines = re.findall('^error: .*', printed, re.MULTILINE)
        if len(lines) != 1 or line not in lines[0]:
          self._wrong('wrong lines', [process])
    for process in job:
      process.forget()

  def _wrong(self, name, job):
    self.counts[name] += 1
    self.notes += [f'{name}: {p.poll()}: {p.printed()[-2000:]}' for p in job]

  def _wait_for_a_moment(self, count, job, workdir):
    """Returns the phase that the job is in, after a while or at its start."""
    patterns = ('.saving-*', '.deleting-*', '*', None)
    pattern = self._chance.choice(patterns)
    checkpoints, seen = workdir / 'checkpoints', set()
    if pattern and checkpoints.exists():
      seen = set(checkpoints.glob(pattern))
    # Of those that wait for something a few wait for too much.
    seconds = self._seconds[count] * (
      self._chance.random() if not pattern else 2
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
      if all(process.poll() is not None for process in job):
        break
      if pattern and set(checkpoints.glob(pattern)) - seen:
        time.sleep(self._chance.uniform(0, 0.05))
        break
      time.sleep(0.001)
    return _phase(workdir)

  def _new(self):
    self._next += 1
    return self._folder / f'run{self._next}'


def _phase(workdir):
  """Returns what a run does, as its files say."""
  checkpoints = workdir / 'checkpoints'
  if list(checkpoints.glob('.deleting-*')):
    return 'in a deletion'
  if list(checkpoints.glob('.saving-*')):
    return 'in a save'
  if (workdir / 'params.txt').exists():
    return 'in training'
  return 'before training'


def _size(workdir):
  return sum(p.stat().st_size for p in workdir.rglob('*') if p.is_file())


class _disk:
  """Puts `workdir` on a disk of so many bytes.

  As root that is one in memory; else no file may be larger. Gives that limit,
  or None, and a function that makes room.
  """

  def __init__(self, workdir, size):
    self._workdir, self._size = workdir, size

  def __enter__(self):
    self._workdir.mkdir()
    self._mounted = os.geteuid() == 0 and self._mount(f'size={self._size}')
    grow = lambda: self._mounted and self._mount('remount,size=256m')
    return None if self._mounted else self._size // 3, grow

  def _mount(self, options):
    command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', self._workdir]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

  def __exit__(self, *_):
    if self._mounted:
      subprocess.run(['umount', self._workdir], check=True)
    shutil.rmtree(self._workdir, ignore_errors=True)


def run(seconds, seed, processes):
  """Returns the counts and notes of a campaign of so many seconds or so."""
  chance = random.Random(seed)
  with folders.folder() as folder:
    campaign = Campaign(folder, seed, processes)
    deadline = time.monotonic() + seconds
    acts = [campaign.kill] * 10
    acts += [campaign.fill, campaign.start_twice, campaign.flip]
    for act in (campaign.flip, campaign.fill, campaign.start_twice):
      act(chance.choice(processes))
    while time.monotonic() < deadline:
      chance.choice(acts)(chance.choice(processes))
  return campaign.counts, campaign.notes
