"""A file of a gigabyte is read without a second copy of it in memory."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip('safetensors')

SCRIPT = textwrap.dedent(
  """
  import os, pathlib, sys, threading, time
  import jax
  jax.config.update('jax_num_cpu_devices', 8)
  import numpy as np
  from flax import traverse_util
  from safetensors.numpy import save_file
  from softmoe import config as config_lib
  from softmoe import experiment as experiment_lib
  from softmoe.tasks import classification
  from softmoe.weights import pretrained

  folder = pathlib.Path(sys.argv[1])
  config = config_lib.default(classification.Config)
  config.update(init=str(folder / 'big.safetensors'), mesh='fsdp:8')
  config.model.update(width=2048, depth=5, mlp_dim=8192, num_heads=16)
  config.model.patch_size = (4, 4)
  experiment = experiment_lib.build(experiment_lib.parse(config))
  leaves = traverse_util.flatten_dict(experiment.abstract_params)
  if sys.argv[2] == 'write':
    zeros = lambda x: np.full(x.shape, 0.5, x.dtype)
    named = {'/'.join(map(str, p)): zeros(x) for p, x in leaves.items()}
    save_file(named, folder / 'big.safetensors')
    sys.exit()

  def anonymous():
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    kib = [line.split()[1] for line in lines if line.startswith('RssAnon')]
    return int(kib[0]) * 1024

  seen, stop = [], threading.Event()
  def watch():
    while not stop.is_set():
      seen.append(anonymous())
      time.sleep(0.01)

  before = anonymous()
  watcher = threading.Thread(target=watch)
  watcher.start()
  params = jax.block_until_ready(pretrained.params(experiment))
  stop.set()
  watcher.join()
  assert all((np.asarray(x) == 0.5).all() for x in jax.tree.leaves(params))
  size = os.path.getsize(folder / 'big.safetensors')
  print('ratio', size, (max(seen) - before) / size)
  """
)


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path('/proc/self/status').exists(), reason='needs Linux'
)
def test_a_gigabyte_takes_little_more_than_itself(tmp_path, environment):
  def run(what):
    command = [sys.executable, '-c', SCRIPT, str(tmp_path), what]
    done = subprocess.run(
      command, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

  run('write')
  _, size, ratio = run('read')
  assert int(size) > 10**9
  assert float(ratio) < 1.2, ratio
