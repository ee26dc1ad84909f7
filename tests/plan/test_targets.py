"""Targets by name, and what is said where they cannot be had."""

import importlib.metadata
import types

import jax
import pytest
from packaging import specifiers

from softmoe.costs import chips
from softmoe.errors import UserError
from softmoe.plan import targets
from tests.compilers import needs_cuda, needs_libtpu


def test_a_cpu_target_is_devices_of_this_machine():
  target = targets.open_target('cpu:4')
  assert target.devices == tuple(jax.devices()[:4])
  assert (target.num_chips, target.chip) == (4, None)


@pytest.mark.parametrize(
  'name', ['', 'v5p', 'v5p:', 'v5p:axb', 'v9:2x2', 'a100:8', '8xH100', 'cpu:8 ']
)
def test_a_name_that_is_none_says_what_one_looks_like(name):
  with pytest.raises(UserError, match="'v5p:8x8x4'"):
    targets.open_target(name)


@pytest.mark.parametrize(
  ('name', 'most'),
  [
    ('cpu:0', '256'),
    ('cpu:1000000', '256'),
    ('h100:0', '16,384'),
    ('h100:0x8', '16,384'),
    ('h100:99999x8', '16,384'),
  ],
)
def test_a_number_of_devices_that_cannot_be(name, most):
  with pytest.raises(UserError, match=f'--target: got .*; 1 to {most} devices'):
    targets.open_target(name)


def test_more_cpu_devices_than_there_are():
  with pytest.raises(UserError, match='at most 8 devices'):
    targets.open_target('cpu:9')


@pytest.mark.parametrize(
  ('name', 'extra'), [('v5e:4x4', 'plan-tpu'), ('h100:8', 'plan-cuda')]
)
def test_a_missing_compiler_names_its_install(monkeypatch, name, extra):
  def version(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(importlib.metadata, 'version', version)
  with pytest.raises(UserError, match=rf'softmoe\[{extra}\]'):
    targets.open_target(name)


@pytest.mark.parametrize('name', ['v5e:4x4', 'h100:8'])
def test_a_compiler_of_another_jax_is_named(monkeypatch, name):
  monkeypatch.setattr(importlib.metadata, 'version', lambda _: '0.0.1')
  with pytest.raises(UserError, match=f"got '0.0.1'; .*jax {jax.__version__}:"):
    targets.open_target(name)


@pytest.mark.parametrize(
  ('name', 'listed'),
  [
    ('v5e:4x4x4', '2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16$'),
    ('v6e:32x32', '16x16$'),
    ('v3:3x3', '16x32, 32x32$'),
    ('v5p:3x5x7', 'multiples of 4 up to 6,144 chips'),
    ('v5p:4x4', '2x2x1, 2x2x2, 2x2x4, 2x4x4 or'),
    ('v4:32x32x32', 'up to 4,096 chips'),
  ],
)
def test_a_slice_that_is_not_offered_lists_those_that_are(name, listed):
  with pytest.raises(UserError, match=listed):
    targets.open_target(name)


@pytest.mark.parametrize('chip', [c.name for c in chips.CHIPS if c.dims])
def test_every_tpu_has_its_slices(chip):
  with pytest.raises(UserError, match=f'a slice of the {chip}: 2x2'):
    targets.open_target(f'{chip}:1x1x1x1')


@pytest.fixture
def asked(monkeypatch):
  """Stands for both compilers; returns what they were asked for."""
  calls = []

  def describe(**options):
    calls.append(options)
    return types.SimpleNamespace(devices=[object()] * 32)

  wanted = specifiers.SpecifierSet('')
  monkeypatch.setattr(targets, '_wanted', lambda _: wanted)
  monkeypatch.setattr(importlib.metadata, 'version', lambda _: '1.0')
  monkeypatch.setattr(targets.topologies, 'get_topology_desc', describe)
  return calls


def test_what_the_tpu_compiler_is_asked(asked):
  target = targets.open_target('v3:4x4')
  assert asked == [{'platform': 'tpu', 'topology_name': 'v3:4x4'}]
  assert (target.shape, target.num_chips) == ((4, 4), 16)
  targets.open_target('v4:2x2x4')
  assert asked[1]['chip_config_name'] == 'megacore'  # as the runtime shows it


def test_what_the_gpu_compiler_is_asked(asked):
  target = targets.open_target('h100:4x8')
  assert asked[0]['topology_name'] == asked[0]['topology'] == '1x4x8'
  assert (target.shape, target.num_chips) == ((4, 8), 32)
  targets.open_target('h100:8')
  assert asked[1]['topology_name'] == '1x1x8'
  with pytest.raises(UserError, match='hosts x GPUs'):
    targets.open_target('h100:1x4x8')


def test_what_the_compiler_refuses_is_one_line(monkeypatch, asked):
  def refuse(**_):
    raise RuntimeError('no such topology\nand more')

  monkeypatch.setattr(targets.topologies, 'get_topology_desc', refuse)
  with pytest.raises(UserError, match=r'\(no such topology\)') as e:
    targets.open_target('v5p:4x4x4')
  assert 'and more' not in str(e.value)


@needs_libtpu
@pytest.mark.parametrize(
  ('name', 'devices', 'chips'),
  [
    ('v3:4x4', 32, 16),
    ('v4:4x4x4', 64, 64),
    ('v5e:4x4', 16, 16),
    ('v5p:8x8x4', 256, 256),
    ('v6e:16x16', 256, 256),
    ('tpu7x:4x4x4', 128, 64),
  ],
)
def test_tpu_slices(name, devices, chips):
  target = targets.open_target(name)
  assert (len(target.devices), target.num_chips) == (devices, chips)


@needs_cuda
def test_gpu_hosts():
  target = targets.open_target('h100:4x8')
  assert len(target.devices) == 32
  assert {d.process_index for d in target.devices} == {0, 1, 2, 3}
