"""Joining a job of several processes, each with devices of its own.

JAX's runtime does the work: process 0 is the coordinator, the others find it
at HOST:PORT. A process that belongs to no job waits for nobody.
"""

import dataclasses
import os
import re
import socket
import sys
import time

import jax

from softmoe.errors import Lost, UserError
from softmoe.process import jax_internals, peers

_PORT = 8476  # of the coordinator, where no other is agreed on


@dataclasses.dataclass(frozen=True)
class Job:
  """The processes that train one model together.

  Attributes:
    coordinator: HOST:PORT of process 0, as all can reach it.
    num_processes: how many there are, at least 2.
    process_id: which of them this one is, from 0.
  """

  coordinator: str
  num_processes: int
  process_id: int

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
      raise UserError('--coordinator', self.coordinator, 'HOST:PORT')
    if not 0 <= self.process_id < self.num_processes:
      expected = f'0 to {self.num_processes - 1}, one for each process'
      raise UserError('--process_id', self.process_id, expected)


def find(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Job | None:
  """Returns the job that this process belongs to, None if it is alone.

  What is given decides; without it, the environment of SLURM, Kubernetes or a
  Cloud TPU does.

  Raises:
    UserError: what is given, or the environment, is wrong or incomplete.
  """
  given = coordinator, num_processes, process_id
  if given == (None, None, None):
    return _slurm() or _kubernetes() or _cloud_tpu()
  if coordinator is None or num_processes is None or process_id is None:
    names = '--coordinator, --num_processes, --process_id'
    raise UserError(names, given, 'all three or none')
  if num_processes < 1:
    raise UserError('--num_processes', num_processes, 'at least 1')
  job = Job(coordinator, num_processes, process_id)
  return job if num_processes > 1 else None


def join(job: Job, join_seconds: int, heartbeat_seconds: int) -> None:
  """Waits until all processes are there; to be called before any computation.

  Args:
    job: what `find` returned.
    join_seconds: how long to wait for the others.
    heartbeat_seconds: a process that is silent for so long is taken for dead.

  Raises:
    Lost: the coordinator cannot be reached.
    UserError: this process is to be the coordinator, and cannot.
  """
  _keep_stdout_clean()
  if job.process_id:
    _reach(job.coordinator, join_seconds)
  # Only a training stops in good order, and by itself: see `preemption`.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    with peers.joining(f'not all processes came within {join_seconds} s'):
      jax.distributed.initialize(
        job.coordinator,
        job.num_processes,
        job.process_id,
        cluster_detection_method='deactivate',
        initialization_timeout=join_seconds,
        heartbeat_timeout_seconds=heartbeat_seconds,
      )
  except jax.errors.JaxRuntimeError as e:
    problem = str(e).splitlines()[0]
    raise UserError(
      '--coordinator', job.coordinator, f'a free port of this host ({problem})'
    ) from e
  peers.watch()


def _slurm() -> Job | None:
  """Returns the job of an `srun` of more than one task."""
  # That of the step: an allocation for many tasks may run just one.
  tasks = int(os.environ.get('SLURM_STEP_NUM_TASKS', 1))
  if tasks < 2:
    return None
  cluster = jax_internals.SlurmCluster
  address = cluster.get_coordinator_address(None, None)
  return Job(address, tasks, cluster.get_process_id())


def _kubernetes() -> Job | None:
  """Returns the job of an indexed Job whose pods are told their number.

  Kubernetes tells a pod its index, but not of how many. An indexed Job may
  also be a sweep of runs that have nothing to do with each other.
  """
  index = os.environ.get('JOB_COMPLETION_INDEX')
  count = os.environ.get('NUM_PROCESSES', '1')
  if index is None or count == '1':
    return None
  if not count.isdecimal():
    raise UserError('NUM_PROCESSES', count, 'the number of pods of the Job')
  name = socket.getfqdn()
  first, replaced = re.subn(rf'-{index}\.', '-0.', name, count=1)
  if not replaced:
    expected = f'NAME-{index}.SERVICE...: a Job with a headless service'
    raise UserError("the pod's name", name, expected)
  return Job(f'{first}:{_PORT}', int(count), int(index))


def _cloud_tpu() -> Job | None:
  """Returns the job of a TPU slice, or of several, of more than one host."""
  if 'tpu' not in (jax.config.values['jax_platforms'] or 'tpu'):
    return None
  for cluster in jax_internals.TPU_CLUSTERS:
    if cluster.is_env_present():
      count = cluster.get_process_count()
      if count == 1:
        return None
      address = cluster.get_coordinator_address(300, None)
      return Job(address, count, cluster.get_process_id())
  return None


def _keep_stdout_clean() -> None:
  """Sends what libraries print to stderr: Gloo greets on stdout."""
  sys.stdout = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)


def _reach(coordinator: str, seconds: int) -> None:
  """Waits until something listens there: the runtime's own wait aborts."""
  host, _, port = coordinator.rpartition(':')
  deadline = time.monotonic() + seconds
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 5).close()
      return
    except OSError as e:
      if time.monotonic() > deadline:
        raise Lost(
          f'no coordinator at {coordinator} within {seconds} s ({e})'
        ) from e
    time.sleep(0.2)
