"""One run on several processes: 8 CPU devices, split among them."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 16
TINY = [
  '--config=tests/tiny.py:soft',
  '--config.mesh=data:2,expert:4',
  f'--config.steps={STEPS}',
  '--config.log_every=1',
  '--config.eval_every=8',
  '--config.checkpoint.every=2',
  '--config.data.source=fake:8x8x1',
  '--config.data.train.crop=none',
  '--config.model.depth=1',
  '--config.model.moe.blocks=(0,)',
]
# Text of any length: what is padding differs from device to device.
TEXT = [
  *('--config.steps=3', '--config.log_every=1', '--config.eval_every=3'),
  *('--config.data.batch_size=16', '--config.data.eval_batch_size=16'),
  *('--config.data.tokenizer=bytes', '--config.data.eval_split=train'),
  '--config.data.train_split=train',
  *('--config.model.width=16', '--config.model.depth=2'),
  *('--config.model.mlp_dim=32', '--config.model.num_heads=2'),
  *('--config.model.vocab_size=257', '--config.model.moe.blocks=(1,)'),
  *('--config.model.moe.num_experts=8', '--config.model.moe.expert_dim=8'),
  '--config.optimizer.schedule.warmup=1',
]
TASKS = {
  'translation': [
    '--config=configs/translate.py:xmoe_cpu',
    *('--config.data.buckets=(8,48)', '--config.search.beam=0'),
  ],
  'language': ['--config=configs/lm.py:xmoe_cpu', '--config.data.length=48'],
}
HEARTBEAT = 10  # seconds
PATIENCE = 240  # seconds for what takes a few, on a busy machine
# Relative: sums over devices are taken in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """Of processes that compile in a hurry, and belong to no other job."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('SLURM_', 'JAX_', 'XLA_', 'GLIBC_', 'JOB_'))
  }
  return kept | {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.05',
    'XLA_FLAGS': '--xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true',
  }


class Process:
  """One process and what it prints."""

  def __init__(self, command, environment, directory):
    self.out, self.err = directory / 'out', directory / 'err'
    with self.out.open('w') as out, self.err.open('w') as err:
      self._process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=out,
        stderr=err,
      )

  def send(self, number):
    self._process.send_signal(number)

  def printed(self):
    """Returns what is on stderr; Gloo's lines may be cut by one another."""
    return self.err.read_text()

  def wait_for(self, pattern):
    """Returns once `pattern` was printed."""
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, self.printed()):
      assert self._process.poll() is None, self.printed()
      assert time.monotonic() < deadline, self.printed()
      time.sleep(0.02)

  def wait(self):
    """Returns the exit code."""
    return self._process.wait(PATIENCE)

  def kill(self):
    self._process.kill()
    self._process.wait()


@pytest.fixture(scope='module')
def start(environment, tmp_path_factory):
  """Returns a function that starts a command on some processes."""
  started = []

  def start(processes, *command, devices=8, of_process=None):
    port = _free_port()
    job = []
    for i in range(processes):
      arguments = [*command, f'--cpu_devices={devices // processes}']
      if processes > 1:
        arguments += [
          f'--coordinator=127.0.0.1:{port}',
          f'--num_processes={processes}',
          f'--process_id={i}',
          f'--heartbeat_seconds={HEARTBEAT}',
        ]
      arguments += (of_process or {}).get(i, [])
      directory = tmp_path_factory.mktemp('process')
      job.append(Process(arguments, environment, directory))
      started.append(job[-1])
    return job

  yield start
  for process in started:
    process.kill()


def _free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def _assert_codes(job, *codes):
  assert [p.wait() for p in job] == list(codes), [p.printed() for p in job]


def _train(workdir):
  return ['train.py', *TINY, f'--workdir={workdir}']


def _metrics(workdir):
  """Returns step, name and value of all but speeds, in order."""
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [
    (row['step'], name, value)
    for row in rows
    for name, value in row.items()
    if name not in ('images_per_second', 'mfu')
  ]


def _assert_same_run(workdir, reference):
  actual, expected = _metrics(workdir), _metrics(reference)
  assert [a[:2] for a in actual] == [e[:2] for e in expected]
  np.testing.assert_allclose(
    [a[2] for a in actual], [e[2] for e in expected], rtol=TOLERANCE, atol=1e-6
  )


def _steps(workdir):
  return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())


@pytest.fixture(scope='module')
def reference(start, tmp_path_factory):
  """Returns the workdir of a whole run of one process with 8 devices."""
  workdir = tmp_path_factory.mktemp('runs') / 'reference'
  _assert_codes(start(1, *_train(workdir)), 0)
  return workdir


@pytest.mark.slow
def test_sigterm_to_one_stops_all_and_four_go_on(start, reference, tmp_path):
  job = start(2, *_train(tmp_path))
  job[0].wait_for('experiment: ')
  job[1].send(signal.SIGTERM)
  _assert_codes(job, 75, 75)
  first, second = (p.printed().splitlines()[-1] for p in job)
  assert first == second
  step = int(re.fullmatch(r'SIGTERM: saved step (\d+); .*', first)[1])
  assert _steps(tmp_path) == [step]

  job = start(4, *_train(tmp_path))
  _assert_codes(job, 0, 0, 0, 0)
  assert f'resuming {tmp_path} at step {step}' in job[0].printed()
  result = json.loads((tmp_path / 'result.json').read_text())
  assert json.loads(job[0].out.read_text()) == result
  for process in job[1:]:
    assert not re.search('experiment:|resuming|step', process.printed())
    assert process.out.read_text() == ''
  _assert_same_run(tmp_path, reference)


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """Returns the source of each task: pairs and documents of any length."""
  directory = tmp_path_factory.mktemp('text')
  words = lambda n: ' '.join('abcdefghijkl'[i % 12] for i in range(n))
  pairs = [(words(n % 4 + 1), words(n * n % 23 + 1)) for n in range(96)]
  lines = ''.join(f'{source}\t{target}\n' for source, target in pairs)
  (directory / 'pairs.tsv').write_text(lines)
  texts = (json.dumps({'text': target}) + '\n' for _, target in pairs * 4)
  (directory / 'texts.jsonl').write_text(''.join(texts))
  return {
    'translation': f'parallel:{directory}/pairs.tsv',
    'language': f'jsonl:{directory}/texts.jsonl',
  }


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_ragged_tokens_on_processes_and_meshes(start, sources, task, tmp_path):
  """Losses and metrics are those of one device."""
  found = {}
  for processes, mesh, devices in (
    (1, 'data:1', 1),
    (2, 'data:2,expert:4', 8),
    (4, 'data:4,expert:2', 8),
  ):
    workdir = tmp_path / str(processes)
    command = [
      *('train.py', *TASKS[task], *TEXT, f'--workdir={workdir}'),
      *(f'--config.data.source={sources[task]}', f'--config.mesh={mesh}'),
    ]
    job = start(processes, *command, devices=devices)
    _assert_codes(job, *[0] * processes)
    found[processes] = [
      (step, name, value)
      for step, name, value in _metrics(workdir)
      # Dropless experts fill rows up, per device; speeds are of the machine.
      if not name.endswith(('moe/executed', 'moe/flops'))
      and not name.endswith('_per_second')
    ]
  names = {name for _, name, _ in found[1]}
  assert {'loss', 'eval/loss', 'moe/wanted'} <= names
  for processes in (2, 4):
    for actual, expected in zip(found[processes], found[1], strict=True):
      assert actual[:2] == expected[:2]
      np.testing.assert_allclose(
        actual[2], expected[2], rtol=1e-5, err_msg=str(actual[:2])
      )


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_goes_on(
  start, reference, tmp_path
):
  one = start(1, *_train(tmp_path), '--config.mesh=data:1', devices=1)
  (process,) = job = one
  process.wait_for('experiment: ')
  process.send(signal.SIGINT)
  _assert_codes(job, 75)
  assert _steps(tmp_path) == [1]

  job = start(2, *_train(tmp_path))
  job[0].wait_for(r'step +6/')
  killed = time.monotonic()
  job[1].send(signal.SIGKILL)
  _assert_codes(job, 75, -signal.SIGKILL)
  assert time.monotonic() - killed < HEARTBEAT + 10
  assert f'resuming {tmp_path} at step 1' in job[0].printed()
  # Among them: the runtime may have its own lines to add.
  assert re.search(
    r'error: another process of the job ended or cannot be reached'
    r'( \(.+\))?; the same command goes on from the last checkpoint\n',
    job[0].printed(),
  )
  lost = json.loads((tmp_path / '.restarts.json').read_text())
  assert lost == {'step': 1, 'starts': 1}

  job = start(2, *_train(tmp_path))
  _assert_codes(job, 0, 0)
  assert 'resuming' in job[0].printed()
  _assert_same_run(tmp_path, reference)
  assert not (tmp_path / '.restarts.json').exists()

  (process,) = job = start(1, 'eval.py', f'--workdir={tmp_path}', devices=1)
  _assert_codes(job, 0)
  evaluated = json.loads(process.out.read_text())
  result = json.loads((tmp_path / 'result.json').read_text())
  for name in ('loss', 'accuracy', 'examples'):
    np.testing.assert_allclose(evaluated[name], result[name], rtol=TOLERANCE)
