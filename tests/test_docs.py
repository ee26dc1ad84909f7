"""The code in the documents runs as it stands."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ['README.md', 'docs/routers.md']


def blocks(path):
  text = pathlib.Path(path).read_text()
  return re.findall(r'```python\n(.*?)```', text, re.S)


@pytest.mark.parametrize('path', DOCUMENTS)
def test_python_blocks_run_one_after_another(path):
  found = blocks(path)
  assert found
  exec('\n'.join(found), {'__name__': 'document'})


def test_the_linen_module_has_the_layers_parameters():
  scope = {'__name__': 'document'}
  code = '\n'.join(blocks('README.md'))
  exec(code.replace('384', '16').replace('128', '4'), scope)
  params = scope['variables']['params']
  assert params['router']['phi'].shape == (16, 4, 1)
  again, _ = scope['linen'].apply(scope['variables'], scope['tokens'])
  assert (again == scope['y']).all()


def test_a_router_of_ones_own_takes_less_than_20_lines():
  (block,) = [b for b in blocks('docs/routers.md') if 'class Nearest' in b]
  router = block[block.index('class ') : block.index('layer = ')]
  assert len(router.strip().splitlines()) < 20


@pytest.mark.slow
def test_two_processes_on_one_laptop(tmp_path):
  """The shell command of docs/pods.md, as it stands but for the directory."""
  text = (ROOT / 'docs' / 'pods.md').read_text()
  (command,) = re.findall(r'```\n(for i in .*?)```', text, re.DOTALL)
  environment = os.environ | {
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
  }
  done = subprocess.run(
    ['bash', '-c', command.replace('runs/two', str(tmp_path))],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'result.json').read_text())
  assert (result['steps'], result['devices']) == (200, 8)
  assert json.loads(done.stdout.splitlines()[-1]) == result
