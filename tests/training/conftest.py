"""A config that trains in seconds, and compilation shared by the tests."""

import functools
import pathlib
import runpy

import jax
import pytest

from softmoe import experiment as experiment_lib
from softmoe.training import loop

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'


@pytest.fixture(scope='session', autouse=True)
def compile_cache(tmp_path_factory):
  """Lets a run that goes on find what an earlier one compiled."""
  directory = tmp_path_factory.mktemp('compiled')
  jax.config.update('jax_compilation_cache_dir', str(directory))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  yield
  jax.config.update('jax_compilation_cache_dir', None)


@pytest.fixture(scope='session')
def tiny():
  """Returns a function from changes of fields to a config."""
  return runpy.run_path(str(TINY))['parse']


@pytest.fixture
def one_device(monkeypatch):
  """Builds every experiment on the first device alone."""
  monkeypatch.setattr(experiment_lib, 'build', _build_on_one)


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
