"""Eight fake CPU devices, no silent broadcasting, shapes checked."""

import contextlib
import os

import jax
import pytest
from jaxtyping import install_import_hook

os.environ['JAX_PLATFORMS'] = 'cpu'
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Before anything imports softmoe: it checks every annotated shape.
install_import_hook('softmoe', 'beartype.beartype')

from softmoe import sharding  # noqa: E402


@pytest.fixture
def mesh():
  """Returns a function that puts a mesh of (data, expert) devices in force."""
  with contextlib.ExitStack() as stack:

    def enter(data, expert):
      devices = jax.devices()[: data * expert]
      mesh = jax.make_mesh((data, expert), sharding.AXES, devices=devices)
      stack.enter_context(jax.set_mesh(mesh))
      return mesh

    yield enter
