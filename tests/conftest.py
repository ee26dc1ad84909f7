"""Eight fake CPU devices, no silent broadcasting, shapes checked."""

import contextlib
import importlib.util
import math
import os
import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

os.environ['JAX_PLATFORMS'] = 'cpu'
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Before anything imports softmoe: it checks every annotated shape.
install_import_hook('softmoe', 'beartype.beartype')

from softmoe import sharding  # noqa: E402

NO_MESH = jax.sharding.get_mesh()


@pytest.fixture(autouse=True)
def no_mesh():
  """Clears the mesh that `experiment.build` leaves in force."""
  yield
  jax.set_mesh(NO_MESH)


@pytest.fixture
def mesh():
  """Returns a function that puts a mesh of so many devices in force."""
  with contextlib.ExitStack() as stack:

    def enter(data, expert=1, fsdp=1):
      sizes = (data, fsdp, expert)
      devices = jax.devices()[: math.prod(sizes)]
      mesh = jax.make_mesh(sizes, sharding.AXES, devices=devices)
      stack.enter_context(jax.set_mesh(mesh))
      return mesh

    yield enter


@pytest.fixture(scope='session')
def hlo():
  """Returns the module that reads compiled programs."""
  path = pathlib.Path(__file__).parent / 'hlo.py'
  spec = importlib.util.spec_from_file_location('hlo', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
