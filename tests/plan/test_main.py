"""`python -m softmoe.plan`, as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.compilers import needs_cuda, needs_libtpu

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'tests/tiny.py'


def plan(tmp_path, *flags):
  environment = os.environ | {
    'XDG_CACHE_HOME': str(tmp_path),
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  }
  return subprocess.run(
    [sys.executable, '-m', 'softmoe.plan', *flags],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """Returns the cache that the tests share."""
  return tmp_path_factory.mktemp('cache')


def test_one_json_object(directory):
  done = plan(
    directory,
    f'--config={TINY}:soft',
    '--config.mesh=data:2,expert:4',
    '--target=cpu:8',
    '--json',
  )
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report['mesh']['expert'] == 4
  assert report['parameters'] > report['active_parameters'] > 0
  train, inference = report['train'], report['inference']
  # Two there and two back, of forward and backward; one MoE block.
  assert train['collectives']['all-to-all']['count'] == 4
  assert inference['collectives']['all-to-all']['count'] == 2
  assert train['memory']['fits']
  assert train['memory']['arguments'] >= (
    report['parameter_bytes'] + train['optimizer_bytes']
  )
  assert 'seconds' not in train  # no figures of a CPU are published


@pytest.mark.slow
def test_two_configs_side_by_side(directory):
  done = plan(
    directory,
    f'--config={TINY}:soft',
    '--config.mesh=data:2,expert:4',
    f'--compare={TINY}:vit',
    '--target=cpu:8',
  )
  assert done.returncode == 0, done.stderr
  lines = dict(
    (line[:31].strip(), line[31:].split()) for line in done.stdout.splitlines()
  )
  assert lines['mesh'][0] != lines['mesh'][1]
  assert len(lines['parameters']) == 2
  assert done.stdout.count('needs ') == 2
  assert list((directory / 'softmoe' / 'plan').glob('*.json.gz'))


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ((f'--config={TINY}:soft',), '--target'),
    ((f'--config={TINY}:soft', '--target=v5p'), "'v5p:8x8x4'"),
    (('--target=cpu:8',), '--config'),
    ((f'--config={TINY}:soft', '--target=cpu:0'), '--target'),
    (
      (f'--config={TINY}:soft', '--target=cpu:1', '--compare=nowhere.py'),
      '--compare',
    ),
    (
      (f'--config={TINY}:soft', '--target=cpu:1', '--cache=/dev/null/x'),
      '--cache',
    ),
    (
      (f'--config={TINY}:soft', '--target=cpu:8', '--config.mesh=expert:3'),
      'config.mesh',
    ),
  ],
)
def test_bad_input_is_one_line(directory, flags, said):
  done = plan(directory, *flags)
  assert done.returncode == 2
  assert said in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  'target',
  [
    pytest.param('v5e:2x4', marks=needs_libtpu),
    pytest.param('v4:2x2x2', marks=needs_libtpu),
    pytest.param('h100:8', marks=needs_cuda),
  ],
)
def test_a_slice_that_is_not_here(directory, target):
  done = plan(
    directory,
    f'--config={TINY}:soft',
    '--config.mesh=data:2,expert:4',
    f'--target={target}',
    '--json',
  )
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  train = report['train']
  assert train['collectives']['all-to-all']['count'] == 4
  assert train['memory']['fits']
  assert train['seconds']['roofline'] > 0
  assert train['chip_hours'] > 0


@pytest.mark.parametrize(
  'target',
  [
    pytest.param('v5e:2x4', marks=needs_libtpu),
    pytest.param('h100:8', marks=needs_cuda),
  ],
)
def test_kernels_of_a_platform_that_is_not_here(directory, target):
  done = plan(
    directory,
    f'--config={TINY}:soft',
    '--config.mesh=data:8',
    '--config.model.attention=pallas',
    f'--target={target}',
    '--json',
  )
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report['attention'] == 'pallas'
  if target == 'h100:8':  # on a TPU the text of the program tells their traffic
    assert report['inference']['traffic_by_part']['kernels'] > 0


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_mended(directory):
  """ViT L/16 with 4,096 images on 8 small chips."""
  done = plan(
    directory,
    '--config=configs/jft4b.py:vit-l16',
    '--config.model.remat=false',
    '--target=v5e:2x4',
    '--json',
  )
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  memory = report['train']['memory']
  assert not memory['fits']
  assert memory['total'] > memory['limit'] > 0
  suggestion = report['suggestion']
  assert suggestion['changes']['model.remat'] is True
  assert suggestion['train']['memory']['fits']
