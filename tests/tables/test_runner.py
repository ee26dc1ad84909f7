"""A suite as a person runs it: queue, stops, bad input."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from softmoe.tables import folders as folders_lib
from softmoe.tables import page as page_lib
from softmoe.tables import runner
from softmoe.tables import suite as suite_lib

ROOT = pathlib.Path(__file__).parents[2]
SUITE = 'tests/tables/tiny_suite.py'
NAMES = [run.name for run in suite_lib.load(suite_lib.find(SUITE)).runs]
# What differs between two trainings of one run.
TIMES = ('started', 'finished', 'seconds', 'command', 'shared', 'commit')


@pytest.fixture(scope='module')
def start(environment):
  """Yields a function that starts a table, with folders in one of its own."""
  started = []

  def start(folder, table, *arguments):
    places = [f'--{name}={folder / name}' for name in ('results', 'runs')]
    process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'softmoe.tables', table, SUITE),
        *(*arguments, *places),
      ],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


@pytest.fixture(scope='module')
def call(start):
  """Returns a function that waits for it: exit code, output, errors."""

  def call(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err

  return call


def folders(folder):
  return folders_lib.Folders('tiny_suite', folder / 'results', folder / 'runs')


def results(folder):
  """Returns the content of each file in the results, by its name."""
  paths = (folder / 'results' / 'tiny_suite').glob('*')
  return {path.stem: path.read_bytes() for path in paths}


def numbers(folder):
  """Returns what a run computed, by its name."""
  read = {name: json.loads(text) for name, text in results(folder).items()}
  return {
    name: {k: v for k, v in value.items() if k not in TIMES}
    for name, value in read.items()
  }


def make(tmp_path, runs, workers=1):
  """Returns a runner in this process."""
  shown = page_lib.Page('tiny', 'test/accuracy')
  path = suite_lib.find(SUITE)
  return runner.Runner(path, runs, folders(tmp_path), workers, shown)


def test_bad_files_and_configs_stop_no_other_run(tmp_path, capsys):
  found = suite_lib.load(suite_lib.find(SUITE)).runs
  bad = suite_lib.Run('M', 'nowhere.py', 3)
  path = folders(tmp_path).result(NAMES[0])
  path.parent.mkdir(parents=True)
  path.write_text('{"half')
  made = make(tmp_path, (bad, *found))
  assert [run.name for run in made._waiting] == NAMES[1:]
  made._waiting.clear()
  assert made.work() == 1
  first, second, last = capsys.readouterr().err.splitlines()
  assert first.startswith('failed nowhere-seed3: error: config: got')
  assert str(path) in second
  assert last == 'tiny: 3 waiting, 2 failed'
  assert path.read_text() == '{"half'


def test_a_run_that_another_has_is_skipped(tmp_path, capsys):
  found = suite_lib.load(suite_lib.find(SUITE)).runs[:1]
  with folders(tmp_path).lock(NAMES[0]):
    assert make(tmp_path, found).work() == 75
  assert f'{NAMES[0]} is in use' in capsys.readouterr().err


def test_workers_share_the_cores():
  assert runner._shares([3, 5, 6], 2) == [[3, 6], [5]]
  assert runner._shares([3, 5], 3) == [[3, 5]] * 3


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['run', 'mian'], ['SUITE', "'mian'", "'ablation'"]),
    (['run', SUITE, '--only=x'], ['--only', "'x'", NAMES[0]]),
    (['run', SUITE, '--workers=0'], ['--workers', '1 or more']),
    (['run', SUITE, '--wrkers=1'], ['--wrkers']),
    (['run'], ['SUITE']),
    (['rnu'], ["'rnu'", "'run'"]),
  ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
  from softmoe.process import launch
  from softmoe.tables import __main__ as tables

  with pytest.raises(SystemExit) as exit_:
    launch.guard(lambda: tables.main(arguments))
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  for word in words:
    assert word in line


def test_one_command_a_run_is_printed(capsys, monkeypatch):
  from softmoe.tables import run

  run.main([SUITE, '--print', '--runs=my runs'])
  lines = capsys.readouterr().out.splitlines()
  words = [shlex.split(line) for line in lines]
  assert [w[:4] for w in words] == [
    ['python', '-m', 'softmoe.tables', 'run']
  ] * 4
  # Each, once more with --print, names its own run alone.
  for line, each in zip(lines, words, strict=True):
    run.main([*each[4:], '--print'])
    assert capsys.readouterr().out == line + '\n'
  assert '--runs=my runs' in words[0]


def test_nobody_reads_what_is_printed(environment):
  reader, writer = os.pipe()
  os.close(reader)  # as `| head -0` does
  command = [sys.executable, '-m', 'softmoe.tables', 'run', SUITE, '--print']
  done = subprocess.run(
    command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE
  )
  os.close(writer)
  assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b'')


@pytest.fixture(scope='module')
def uninterrupted(call, tmp_path_factory):
  """Returns the folder of a suite that nothing stopped."""
  folder = tmp_path_factory.mktemp('uninterrupted')
  code, _, err = call(folder, 'run', '--workers=2')
  assert code == 0, err
  return folder


@pytest.mark.slow
def test_every_run_leaves_one_file(uninterrupted):
  found = numbers(uninterrupted)
  assert sorted(found) == sorted(NAMES)
  assert (
    len({value['metrics']['test[:50]/loss'] for value in found.values()}) == 4
  )
  first = json.loads(results(uninterrupted)[NAMES[0]])
  assert (first['seed'], first['sweep']) == (0, {'width': 8})
  assert first['shared'] is True
  assert first['curve'][-1]['step'] == first['config']['steps'] == 200
  (path,) = (uninterrupted / 'runs/tiny_suite' / NAMES[0] / 'checkpoints').glob(
    '[0-9]*'
  )
  assert path.name == '200'


def wait(condition, process):
  while not condition():
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.02)


def children(pid):
  """Returns the process of each run that a runner does, by its name."""
  found = {}
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      parent = (path / 'stat').read_text().rpartition(')')[2].split()[1]
      words = (path / 'cmdline').read_text().split('\0')
    except OSError:
      continue
    if int(parent) == pid and 'softmoe.tables.worker' in words:
      found[words[words.index('softmoe.tables.worker') + 2]] = int(path.name)
  return found


def midway(folder, name):
  """Tells whether a run has a checkpoint to go on from, and work left."""
  workdir = folders(folder).workdir(name)
  saved = list(workdir.glob('checkpoints/*[0-9]'))
  return saved and page_lib.last_step(workdir) < 190


def resumed(folder):
  """Returns the runs that went on from a checkpoint."""
  return {
    name
    for name in NAMES
    if 'resuming' in folders(folder).log(name).read_text()
  }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_a_suite_that_is_killed_goes_on(uninterrupted, start, call, tmp_path):
  process = start(tmp_path, 'run', '--workers=2')
  wait(lambda: midway(tmp_path, NAMES[0]), process)
  os.kill(children(process.pid)[NAMES[0]], signal.SIGKILL)
  wait(lambda: results(tmp_path), process)
  wait(lambda: any(midway(tmp_path, n) for n in NAMES[2:]), process)
  workers = children(process.pid)
  hit = {name for name in workers if midway(tmp_path, name)}
  process.kill()
  assert f'failed {NAMES[0]}: error: killed by' in process.stderr.read()
  deadline = time.monotonic() + 20
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in workers.values()):
    assert time.monotonic() < deadline, 'a worker outlives its runner'
    time.sleep(0.05)
  assert folders_lib.in_use(tmp_path / 'runs') == []
  before = results(tmp_path)
  assert 0 < len(before) < 4

  code, _, err = call(tmp_path, 'run', '--workers=2')
  assert (code, len(err.splitlines())) == (0, 5 - len(before)), err
  assert resumed(tmp_path) == (hit | {NAMES[0]}) - set(before)
  assert numbers(tmp_path) == numbers(uninterrupted)
  after = results(tmp_path)
  assert {name: after[name] for name in before} == before

  code, _, err = call(tmp_path, 'run', '--workers=2')
  assert (code, err) == (0, 'tiny_suite: 4 done\n')
  assert results(tmp_path) == after


@pytest.mark.slow
def test_a_suite_that_is_told_to_stop_saves(start, tmp_path):
  process = start(tmp_path, 'run', '--workers=1')
  wait(lambda: midway(tmp_path, NAMES[0]), process)
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  assert 'SIGINT: all workers ended; the same command goes on' in err
  assert 'saved step' in folders(tmp_path).log(NAMES[0]).read_text()


@pytest.mark.slow
def test_times_of_each_model_alone(call, tmp_path):
  with folders(tmp_path).lock(NAMES[0]):
    code, _, err = call(tmp_path, 'time', '--rounds=2')
  assert (code, NAMES[0] in err) == (2, True)
  code, _, err = call(tmp_path, 'time', '--rounds=2')
  assert code == 0, err
  times = json.loads(folders(tmp_path).times().read_text())
  assert list(times['models']) == ['vit-width8', 'soft-width8']
  for model in times['models'].values():
    low, high = model['train_step_range']
    assert 0 < low <= model['train_step_seconds'] <= high
    assert model['inference_seconds'] > 0
    assert model['examples'] == 16
