"""The code in the documents runs as it stands."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import softmoe
from softmoe.runs import workdir as workdir_lib
from softmoe.training import loop

ROOT = pathlib.Path(__file__).parents[1]


def blocks(path):
  text = (ROOT / path).read_text()
  return re.findall(r'```python\n(.*?)```', text, re.S)


@pytest.fixture
def quickstart(finished, tmp_path, monkeypatch):
  """Enters a folder in which `runs/quickstart/soft` is a run."""
  run = tmp_path / 'runs' / 'quickstart' / 'soft'
  run.parent.mkdir(parents=True)
  run.symlink_to(finished[0])
  monkeypatch.chdir(tmp_path)


def test_python_blocks_of_the_readme_run_one_after_another(quickstart):
  exec(small('\n'.join(blocks('README.md'))), {'__name__': 'document'})


@pytest.mark.slow
def test_python_blocks_about_routers_run_one_after_another():
  code = '\n'.join(blocks('docs/routers.md'))
  exec(code, {'__name__': 'document'})


def small(code):
  """Returns the code with a width that computes in no time."""
  return code.replace('384', '16').replace('128', '4')


def test_the_linen_module_has_the_layers_parameters():
  """Without the last block, whose model puts a mesh in force."""
  scope = {'__name__': 'document'}
  exec(small('\n'.join(blocks('README.md')[:-1])), scope)
  params = scope['variables']['params']
  assert params['router']['phi'].shape == (16, 4, 1)
  again, _ = scope['linen'].apply(scope['variables'], scope['tokens'])
  assert (again == scope['y']).all()


def test_a_router_of_ones_own_takes_less_than_20_lines():
  (block,) = [b for b in blocks('docs/routers.md') if 'class Nearest' in b]
  router = block[block.index('class ') : block.index('layer = ')]
  assert len(router.strip().splitlines()) < 20


@pytest.mark.slow
def test_a_router_of_ones_own_is_trained_from_a_config(
  tiny, one_device, tmp_path, monkeypatch
):
  (block,) = [b for b in blocks('docs/routers.md') if 'class Nearest' in b]
  router = block[: block.index('layer = ')]
  imports = 'import jax\nfrom flax import nnx\n'
  (tmp_path / 'my_module.py').write_text(imports + router)
  monkeypatch.syspath_prepend(tmp_path)
  options = (('temperature', 2.0),)
  moe = dict(router='my_module:NearestExpert', router_options=options)
  config = tiny(**{f'model__moe__{k}': v for k, v in moe.items()})
  config = dataclasses.replace(config, eval_every=0)
  result = loop.train(config, tmp_path / 'run')
  assert result['moe/wanted'] == 1
  model = softmoe.load(tmp_path / 'run')
  assert model.blocks[1].mlp.router.temperature == 2.0
  assert workdir_lib.read_config(tmp_path / 'run') == config


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
