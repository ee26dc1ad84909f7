"""What is taken from inside JAX: the only file that imports `jax._src`.

None of this is promised to stay. `tests/process/test_jax_internals.py` says
what is needed of it, for every version of JAX that is supported.
"""

from typing import Any

from jax._src import distributed
from jax._src.clusters import cloud_tpu_cluster, slurm_cluster
from jax._src.lib import _jax

# `jax.distributed.initialize` finds a cluster as well, but takes a SLURM
# allocation or a TPU of one process for a job, and does not say what it found.
SlurmCluster = slurm_cluster.SlurmCluster
TPU_CLUSTERS = cloud_tpu_cluster.GceTpuCluster, cloud_tpu_cluster.GkeTpuCluster

# JAX has one of its own, for `multihost_utils.reached_preemption_sync_point`,
# which Orbax asks about steps of the past too: it then answers wrongly.
create_preemption_sync_manager = _jax.create_preemption_sync_manager


def client() -> Any:
  """Returns the link to the coordinator, None without a job.

  JAX offers no other way to wait for all processes, or to tell them something,
  that takes no part of the devices' time and works when a device hangs.
  """
  return distributed.global_state.client


def process_id() -> int:
  """Returns this process's number; `jax.process_index` asks the devices."""
  return distributed.global_state.process_id


def num_processes() -> int:
  """Returns how many there are; `jax.process_count` asks the devices."""
  return distributed.global_state.num_processes or 1
