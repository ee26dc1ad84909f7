"""Marks of tests that need a compiler for devices that are not here."""

import importlib.util

import pytest


def _needs(module, name):
  missing = importlib.util.find_spec(module) is None
  return pytest.mark.skipif(missing, reason=f'{name} is not installed')


needs_libtpu = _needs('libtpu', 'libtpu')
needs_cuda = _needs('jax_cuda12_plugin', 'jax-cuda12-plugin')
