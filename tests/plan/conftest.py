"""The config that trains in seconds."""

import pathlib
import runpy

import pytest

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'


@pytest.fixture(scope='session')
def tiny():
  """Returns a function from changes of fields to a config."""
  return runpy.run_path(str(TINY))['parse']
