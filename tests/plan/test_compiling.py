"""Compiled once, and what is said of a program that is too large."""

import dataclasses
import os.path

import jax
import pytest
from jax import numpy as jnp

from softmoe.errors import UserError
from softmoe.plan import compiling, targets

GIB = 2**30


def trace(size=64):
  x = jax.ShapeDtypeStruct((size, size), jnp.float32)
  return jax.jit(lambda x: jnp.tanh(x @ x)).trace(x)


@pytest.fixture
def target():
  return targets.open_target('cpu:1')


@pytest.fixture
def compiles(monkeypatch):
  """Returns a list that grows by what was compiled."""
  calls, compile_ = [], compiling._compile

  def count(lowered):
    calls.append(lowered)
    return compile_(lowered)

  monkeypatch.setattr(compiling, '_compile', count)
  return calls


def test_memory_and_cost(target):
  compiled = compiling.compile_program(trace(), target, None)
  assert compiled.arguments == compiled.outputs == 64 * 64 * 4
  assert compiled.needed >= 2 * 64 * 64 * 4
  assert compiled.flops >= 2 * 64**3
  assert 'ENTRY' in compiled.text


def test_the_same_program_is_compiled_once(target, compiles, tmp_path):
  first = compiling.compile_program(trace(), target, tmp_path)
  assert compiling.compile_program(trace(), target, tmp_path) == first
  assert len(compiles) == 1
  assert list(tmp_path.glob('*.json.gz')) == list(tmp_path.iterdir())


def test_another_program_target_or_version_is_another(
  target, compiles, tmp_path, monkeypatch
):
  compiling.compile_program(trace(), target, tmp_path)
  compiling.compile_program(trace(32), target, tmp_path)
  other = dataclasses.replace(target, name='cpu:1 ')
  compiling.compile_program(trace(), other, tmp_path)
  newer = dataclasses.replace(target, compiler='another')
  compiling.compile_program(trace(), newer, tmp_path)
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_flag=1')
  compiling.compile_program(trace(), target, tmp_path)
  assert len(compiles) == 5


def test_a_damaged_file_of_the_cache_is_made_again(target, tmp_path):
  first = compiling.compile_program(trace(), target, tmp_path)
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  for damaged in (whole[:-9], whole[:20] + b'!' + whole[21:], b''):
    path.write_bytes(damaged)
    made = compiling.compile_program(trace(), target, tmp_path)
    assert (made.text, made.needed) == (first.text, first.needed)
    (path,) = tmp_path.iterdir()
    assert compiling._read(path) == made


@pytest.mark.parametrize(
  ('message', 'needed'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G '
      'of 15.75G hbm. Exceeded hbm capacity by 4.75G.',
      20.5 * GIB,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (20.50G) exceeds available HBM (15.75G).',
      20.5 * GIB + 64 * 64 * 4,
    ),
  ],
)
def test_a_refused_program_says_what_it_needs(
  target, monkeypatch, message, needed
):
  def compile_(self):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', compile_)
  compiled = compiling.compile_program(trace(), target, None)
  assert (compiled.text, compiled.needed) == ('', needed)
  assert compiled.limit == 15.75 * GIB
  assert compiled.arguments == 64 * 64 * 4


def test_another_failure_is_not_taken_for_a_lack_of_memory(monkeypatch, target):
  def compile_(self):
    raise jax.errors.JaxRuntimeError('INTERNAL: no')

  monkeypatch.setattr(jax.stages.Lowered, 'compile', compile_)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    compiling.compile_program(trace(), target, None)


def test_the_cache_is_where_the_system_has_caches(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  cache = compiling.open_cache('')
  assert cache == tmp_path / 'softmoe' / 'plan'
  assert cache.is_dir()


@pytest.mark.parametrize('path', ['', '~/plan', '~no-such-user/plan'])
def test_without_a_home_the_cache_has_to_be_named(monkeypatch, path):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  with pytest.raises(UserError, match='--cache: got .*; the full path'):
    compiling.open_cache(path)
