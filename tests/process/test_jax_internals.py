"""What is needed of the inside of JAX, for the version that is installed."""

import pathlib
import re

import pytest

from softmoe.process import jax_internals

SOFTMOE = pathlib.Path(jax_internals.__file__).parents[1]
INTERNAL = re.compile(r'\bjax\._src\b|^\s*(import|from) jaxlib\b', re.MULTILINE)


def test_a_process_without_a_job_is_alone():
  assert jax_internals.client() is None
  assert jax_internals.process_id() == 0
  assert jax_internals.num_processes() == 1


def test_the_coordinator_links_processes():
  from jax._src.lib import _jax

  service = _jax.get_distributed_runtime_service('[::]:0', 1)
  del service
  client = _jax.DistributedRuntimeClient
  for name in (
    'blocking_key_value_get',
    'key_value_set',
    'wait_at_barrier',
  ):
    assert callable(getattr(client, name))


def test_slurm_tells_process_and_coordinator(monkeypatch):
  monkeypatch.setenv('SLURM_JOB_ID', '70000')
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'node[07-09],other')
  monkeypatch.setenv('SLURM_PROCID', '2')
  cluster = jax_internals.SlurmCluster
  assert cluster.get_process_id() == 2
  host, _, port = cluster.get_coordinator_address(None, None).rpartition(':')
  assert host == 'node07'
  assert 1024 < int(port) < 65536


def test_a_tpu_on_gke_tells_process_and_coordinator(monkeypatch):
  _, cluster = jax_internals.TPU_CLUSTERS
  for name, value in {
    'TPU_WORKER_HOSTNAMES': 'third,fourth',
    'TPU_WORKER_ID': '1',
    'MEGASCALE_NUM_SLICES': '2',
    'MEGASCALE_SLICE_ID': '1',
    'MEGASCALE_COORDINATOR_ADDRESS': 'localhost',
  }.items():
    monkeypatch.setenv(name, value)
  assert cluster.get_process_count() == 4
  assert cluster.get_process_id() == 3
  assert cluster.get_coordinator_address(300, None).startswith('localhost:')


@pytest.mark.parametrize('cluster', jax_internals.TPU_CLUSTERS)
def test_no_tpu_is_no_job(cluster, monkeypatch):
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  assert not cluster.is_env_present()


def test_a_stop_can_be_agreed_on():
  manager = jax_internals.create_preemption_sync_manager()
  for name in ('initialize', 'reached_sync_point', 'shutdown'):
    assert callable(getattr(manager, name))


def test_no_other_file_looks_inside_jax():
  found = {
    str(path.relative_to(SOFTMOE))
    for path in SOFTMOE.rglob('*.py')
    if INTERNAL.search(path.read_text())
  }
  assert found == {'process/jax_internals.py'}
