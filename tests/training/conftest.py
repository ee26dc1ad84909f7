"""A config that trains in seconds, and compilation shared by the tests."""

import functools
import pathlib
import runpy

import jax
import pytest

from softmoe import experiment as experiment_lib

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
  build = functools.partial(experiment_lib.build, devices=jax.devices()[:1])
  monkeypatch.setattr(experiment_lib, 'build', build)
