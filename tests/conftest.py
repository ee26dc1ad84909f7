"""Eight fake CPU devices, shapes checked, a config that trains in seconds."""

import contextlib
import functools
import importlib.util
import math
import os
import pathlib
import runpy

import jax
import pytest
from jaxtyping import install_import_hook

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests compile much and compute little: XLA's own passes as ever, LLVM's few.
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'
  ' --xla_llvm_disable_expensive_passes=true'
)
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Before anything imports softmoe: it checks every annotated shape.
install_import_hook('softmoe', 'beartype.beartype')

from softmoe import experiment as experiment_lib  # noqa: E402
from softmoe import sharding  # noqa: E402
from softmoe.process import launch  # noqa: E402
from softmoe.runs import load  # noqa: E402
from softmoe.training import loop  # noqa: E402

NO_MESH = jax.sharding.get_mesh()
TINY = pathlib.Path(__file__).parent / 'tiny.py'


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


@pytest.fixture(scope='session', autouse=True)
def compile_cache(tmp_path_factory):
  """Keeps all that is compiled: `forget_programs` makes it compile again."""
  directory = tmp_path_factory.mktemp('compiled')
  jax.config.update('jax_compilation_cache_dir', str(directory))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  yield
  jax.config.update('jax_compilation_cache_dir', None)


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Drops what a file compiled: thousands of programs slow all that follow."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def environment(tmp_path_factory):
  """Returns that of a process which finds what an earlier one compiled."""
  environment = dict(os.environ) | {
    'PYTHONPATH': str(TINY.parents[1]),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }
  for name in ('XLA_FLAGS', 'GLIBC_TUNABLES', 'JAX_NUM_CPU_DEVICES'):
    environment.pop(name, None)
  return environment


@pytest.fixture
def launched(monkeypatch):
  """Lets a command run in the tests' process, whose heap and devices stay."""
  monkeypatch.setattr(launch, 'keep_heap', lambda: None)
  monkeypatch.setattr(launch, 'use_cores', lambda: None)


@pytest.fixture(scope='session')
def tiny():
  """Returns a function from changes of fields to a config."""
  return runpy.run_path(str(TINY))['parse']


@pytest.fixture
def one_device(monkeypatch):
  """Builds every experiment on the first device alone."""
  monkeypatch.setattr(experiment_lib, 'build', _build_on_one)


@pytest.fixture
def other_data(tiny, one_device, monkeypatch):
  """Restores, whatever the workdir, a run whose data has changed since."""
  experiment = experiment_lib.build(tiny(data__fingerprint='of the run'))
  restored = load.Restored(experiment, 0, {})
  monkeypatch.setattr(load, 'restore', lambda *_: restored)


@pytest.fixture(scope='session')
def finished(tiny, tmp_path_factory):
  """Returns workdir, config and result of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('finished')
  config = tiny(mesh='data:1,expert:1')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment_lib, 'build', _build_on_one)
    return workdir, config, loop.train(config, workdir)


_build_on_one = functools.partial(
  experiment_lib.build, devices=jax.devices()[:1]
)
