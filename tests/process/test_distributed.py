"""Which job a process belongs to, by flags and by its environment."""

import pytest

from softmoe.errors import UserError
from softmoe.process import distributed
from softmoe.process.distributed import Job


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  """Leaves an environment that says nothing of a job."""
  for name in (
    'SLURM_STEP_NUM_TASKS',
    'SLURM_JOB_ID',
    'JOB_COMPLETION_INDEX',
    'NUM_PROCESSES',
  ):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(distributed, '_cloud_tpu', lambda: None)


def test_alone_without_flags_or_environment():
  assert distributed.find() is None
  assert distributed.find('host:1', 1, 0) is None


def test_flags_decide_over_the_environment(monkeypatch):
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '3')
  monkeypatch.setenv('NUM_PROCESSES', '4')
  assert distributed.find('host:1', 2, 1) == Job('host:1', 2, 1)


@pytest.mark.parametrize(
  ('flags', 'field'),
  [
    (('host:1', 2, None), '--coordinator, --num_processes, --process_id'),
    ((None, None, 0), 'all three or none'),
    (('host:1', 0, 0), '--num_processes'),
    (('host:1', 2, 2), '0 to 1'),
    (('host', 2, 0), 'HOST:PORT'),
    (('host:99999', 2, 0), 'HOST:PORT'),
  ],
)
def test_wrong_flags_are_named(flags, field):
  with pytest.raises(UserError, match=field):
    distributed.find(*flags)


def test_tasks_of_a_slurm_step(monkeypatch):
  monkeypatch.setenv('SLURM_JOB_ID', '70000')
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'node[07-09],other')
  monkeypatch.setenv('SLURM_PROCID', '2')
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '4')
  job = distributed.find()
  assert (job.num_processes, job.process_id) == (4, 2)
  assert job.coordinator.startswith('node07:')
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  assert distributed.find() is None


def test_pods_of_an_indexed_job(monkeypatch):
  monkeypatch.setattr(
    distributed.socket, 'getfqdn', lambda: 'train-2.peers.default.svc'
  )
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '2')
  assert distributed.find() is None  # one of a sweep
  monkeypatch.setenv('NUM_PROCESSES', '4')
  assert distributed.find() == Job('train-0.peers.default.svc:8476', 4, 2)
  monkeypatch.setenv('NUM_PROCESSES', 'four')
  with pytest.raises(UserError, match='NUM_PROCESSES'):
    distributed.find()


def test_a_pod_without_a_headless_service_is_told(monkeypatch):
  monkeypatch.setattr(distributed.socket, 'getfqdn', lambda: 'some-host')
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '2')
  monkeypatch.setenv('NUM_PROCESSES', '4')
  with pytest.raises(UserError, match='headless service'):
    distributed.find()
