"""train.py and eval.py as a person meets them: in a process of their own."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.weights import pretrained

ROOT = pathlib.Path(__file__).parents[1]
TINY = ['--config=tests/tiny.py:soft', '--cpu_devices=1']
TIMING = ('images_per_second', 'mfu')
PROGRESS = re.compile(
  r'experiment: [\d,]+ parameters, .* GFLOP/image, cpu device\(s\) as .*'
  r'|step \d/8  loss .*|step \d: test\[:100\] loss .* accuracy .*'
  r'|resuming \S+ at step \d'
  r'|first step after [\d.]+ s: imports [\d.]+, .*, step [\d.]+'
)


@pytest.fixture(scope='module')
def call(environment):
  """Returns a function that runs a script and returns how it went."""

  def call(script, *arguments):
    return subprocess.run(
      [sys.executable, script, *map(str, arguments)],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  return call


def contents(directory):
  return {
    str(path): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file()
  }


def metrics(workdir):
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{k: v for k, v in r.items() if k not in TIMING} for r in rows]


def assert_refused(done, *words):
  """Asserts one line of error that has all the words, and exit code 2."""
  assert done.returncode == 2, done.stderr
  assert done.stdout == ''
  assert re.fullmatch(r'error: .*\n', done.stderr), done.stderr
  for word in words:
    assert word in done.stderr


def some(quick, cases):
  """Returns all the cases; those after the first `quick` are slow."""
  late = [pytest.param(*case, marks=pytest.mark.slow) for case in cases[quick:]]
  return [*cases[:quick], *late]


WRONG_FLAGS = [
  (['--config.model.widht=3'], ["'widht'", 'Did you mean "width"']),
  (['--config.steps=abc'], ['config.steps=abc', 'int']),
  (['--wrkdir=x'], ["'wrkdir'", 'workdir']),
  (['--config.name=\udcff'], ['not UTF-8']),
  (['--config.modle.width=3'], ["'modle'", 'Did you mean "model"']),
  (['--config.xyz=3'], ["no such config field: 'xyz'"]),
  (
    ['--config.optimizer.learning_rate=fast'],
    ['config.optimizer.learning_rate=fast', 'float'],
  ),
  (['--config.model.scan=perhaps'], ['config.model.scan=perhaps', 'oolean']),
  (['--workdir='], ['give --workdir=DIRECTORY']),
  (['--cpu_devices=-1'], ['cpu_devices']),
  (['steps=3'], ["'steps=3'", '--name=value']),
]


@pytest.mark.parametrize(('arguments', 'words'), some(4, WRONG_FLAGS))
def test_a_wrong_flag_is_one_line(call, tmp_path, arguments, words):
  done = call('train.py', *TINY, f'--workdir={tmp_path / "run"}', *arguments)
  assert_refused(done, *words)
  assert not (tmp_path / 'run').exists()


WRONG_CONFIGS = [
  ('tests/tiny.py:sfot', ["'sfot'", "'soft'"]),
  ('quickstrat:soft', ['--config', "'quickstrat'", "'quickstart'"]),
  (None, ['give --config=FILE']),
  ('nowhere.py', ['--config', "'nowhere.py'"]),
  ('quickstart:sfot', ["'sfot'", "'soft'"]),
  ('Makefile', ['--config', 'Makefile']),
  ('', ['--config']),
]


@pytest.mark.parametrize(('config', 'words'), some(3, WRONG_CONFIGS))
def test_a_wrong_config_file_is_one_line(call, tmp_path, config, words):
  given = [] if config is None else [f'--config={config}']
  done = call('train.py', *given, f'--workdir={tmp_path / "run"}')
  assert_refused(done, *words)


def test_bad_input_is_one_line_and_the_corrected_command_may_follow(
  call, tmp_path
):
  mesh = ['--config.mesh=data:3', '--cpu_devices=8']
  done = call('train.py', *TINY, f'--workdir={tmp_path / "run"}', *mesh)
  assert_refused(done, 'config.mesh', "'data:3'", 'product is 8')
  assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.slow
def test_a_job_that_does_not_come_together_is_one_line(call, tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
  job = [f'--coordinator={address}', '--num_processes=2', '--process_id=0']
  done = call(
    'train.py', *TINY, f'--workdir={tmp_path}', *job, '--join_seconds=1'
  )
  assert done.returncode == 75
  assert done.stderr == (
    'error: not all processes came within 1 s; the same command goes on from '
    'the last checkpoint\n'
  )


def test_eval_of_no_run_is_one_line(call, tmp_path):
  done = call('eval.py', f'--workdir={tmp_path}')
  assert_refused(done, '--workdir', 'config.json')
  assert list(tmp_path.iterdir()) == []


@pytest.fixture
def console(environment, tmp_path):
  """Returns a function that runs a script as pip writes them, elsewhere."""
  script = tmp_path / 'bin' / 'softmoe-train'
  script.parent.mkdir()
  script.write_text('from softmoe.commands import train\ntrain.run()\n')
  (tmp_path / 'my').mkdir()

  def console(*arguments):
    return subprocess.run(
      [sys.executable, script, *arguments],
      cwd=tmp_path / 'my',
      env=environment,
      capture_output=True,
      text=True,
      timeout=60,
    )

  return console


def test_a_console_script_finds_modules_of_the_current_folder(
  console, tmp_path
):
  (tmp_path / 'my' / 'my_module.py').write_text("TEXT = 'found it'")
  (tmp_path / 'my' / 'mine.py').write_text(
    'import my_module\ndef get_config():\n  raise OSError(my_module.TEXT)\n'
  )
  done = console('--config=mine.py', f'--workdir={tmp_path / "run"}')
  assert_refused(done, '--config', 'found it')


def test_a_console_script_helps(console):
  done = console('--help')
  assert done.stdout.startswith('Trains the experiment')
  for flag in ('--config', '--workdir'):
    assert flag in done.stdout
  assert '--num_processes' not in done.stdout  # that is for --helpfull


@pytest.fixture(scope='module')
def finished(call, tmp_path_factory):
  """Returns the workdir of a whole run and how the process went."""
  workdir = tmp_path_factory.mktemp('runs') / 'finished'
  return workdir, call('train.py', *TINY, f'--workdir={workdir}')


@pytest.mark.slow
def test_a_run_prints_its_progress_and_nothing_else(finished):
  workdir, done = finished
  assert done.returncode == 0, done.stderr
  for line in done.stderr.splitlines():
    assert PROGRESS.fullmatch(line), line
  assert json.loads(done.stdout) == json.loads(
    (workdir / 'result.json').read_text()
  )
  assert done.stdout.count('\n') == 1


@pytest.mark.slow
def test_a_finished_run_prints_its_result_again(finished, call):
  workdir, done = finished
  before = contents(workdir)
  again = call('train.py', *TINY, f'--workdir={workdir}')
  assert (again.returncode, again.stdout) == (0, done.stdout)
  assert again.stderr == f'{workdir} holds the finished run\n'
  assert contents(workdir) == before


@pytest.mark.slow
def test_eval_prints_the_accuracy_of_the_result_alone(finished, call):
  workdir, done = finished
  evaluated = call('eval.py', '--cpu_devices=1', f'--workdir={workdir}')
  assert (evaluated.returncode, evaluated.stderr) == (0, '')
  (line,) = evaluated.stdout.splitlines()
  result = json.loads(done.stdout)
  moe = ('dispatch_max', 'combine_max', 'executed', 'flops')
  names = ('loss', 'accuracy', 'examples', *(f'moe/{name}' for name in moe))
  assert json.loads(line) == {
    'step': 8,
    'split': 'test[:100]',
    **{name: result[name] for name in names},
  }
  assert result['examples'] == 100


@pytest.mark.slow
@pytest.mark.parametrize(
  'file',
  [
    'metrics/metrics',
    'state/ocdbt.process_0/d/*',
    'state/array_metadatas/process_0',
    'state/manifest.ocdbt',
    'checksums.json',
  ],
)
def test_a_damaged_checkpoint_is_refused(finished, call, tmp_path, file):
  workdir = shutil.copytree(finished[0], tmp_path / 'run')
  (workdir / 'result.json').unlink()
  (path,) = (workdir / 'checkpoints' / '8').glob(file)
  os.truncate(path, path.stat().st_size // 2)
  before = contents(workdir)
  done = call('train.py', *TINY, f'--workdir={workdir}')
  assert_refused(done, 'checkpoint', '--step=6 evaluates it')
  assert contents(workdir) == before


LONG = [
  *TINY,
  '--config.steps=400',
  '--config.log_every=5',
  '--config.eval_every=50',
  '--config.checkpoint.every=20',
]


@pytest.fixture(scope='module')
def uninterrupted(call, tmp_path_factory):
  """Returns the workdir of a run that is long enough to be hit midway."""
  workdir = tmp_path_factory.mktemp('runs') / 'uninterrupted'
  done = call('train.py', *LONG, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  return workdir


def last_state(workdir):
  """Returns the bytes of the last checkpoint's arrays."""
  config = workdir_lib.read_config(workdir)
  experiment = experiment_lib.build(config, jax.devices()[:1])
  with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
    state = state_lib.restore_or_init(experiment, checkpoints, pretrained.start)
  assert state['step'] == config.steps
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('number', 'code', 'message'),
  [
    (signal.SIGKILL, -signal.SIGKILL, ''),
    (signal.SIGTERM, 75, 'SIGTERM: saved step '),
    (signal.SIGINT, 75, 'SIGINT: saved step '),
  ],
)
def test_a_killed_run_goes_on_as_if_it_was_not(
  uninterrupted, call, environment, tmp_path, number, code, message
):
  command = ['train.py', *LONG, f'--workdir={tmp_path}']
  with subprocess.Popen(
    [sys.executable, *command],
    cwd=ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    for line in process.stderr:
      if line.startswith('step  75/400'):
        process.send_signal(number)
        break
    rest = process.stderr.read()
  assert process.returncode == code
  assert message in rest
  assert 'Traceback' not in rest
  assert not (tmp_path / 'result.json').exists()
  done = call(*command)
  assert done.returncode == 0, done.stderr
  assert f'resuming {tmp_path} at step ' in done.stderr
  assert metrics(tmp_path) == metrics(uninterrupted)
  assert last_state(tmp_path) == last_state(uninterrupted)
