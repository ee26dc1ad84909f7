"""What the launcher's CPU settings are worth: devices and the heap.

python benchmarks/cpu_placement.py

Times a training step of two models, each in processes with one CPU device or
one a core, with the heap on ordinary pages, on huge pages, and on huge pages
that it keeps. Rounds are interleaved, and the table gives the best step of all
rounds and how many times faster it is than with one device on ordinary pages.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time

import jax
import timing
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.data.images import config as image_config
from softmoe.models import config as model_config
from softmoe.models import vit
from softmoe.process import launch
from softmoe.runs import state
from softmoe.tables import markdown
from softmoe.tasks import classification
from softmoe.training import step

ROUNDS = 3
STEPS = 6
HEAPS = {
  'ordinary': 'glibc.malloc.hugetlb=0',
  'huge': 'glibc.malloc.hugetlb=1',
  'huge, kept': launch.HEAP,
}
# Devices (0: one a core) and heap.
SETTINGS = [(devices, heap) for devices in (1, 0) for heap in HEAPS]
MODELS = {
  'ViT 128 x 6, 16 tokens': {},
  'Soft MoE, 128 experts of 384 x 1536 in one block': dict(
    width=384, depth=1, mlp_dim=1536, num_heads=6, patch_size=(2, 2)
  ),
}


def main() -> None:
  """Prints a Markdown table."""
  best: dict[tuple, float] = {}
  for _ in range(ROUNDS):
    for setting in SETTINGS:
      for name in MODELS:
        key = (name, setting)
        best[key] = min(best.get(key, float('inf')), measure(name, *setting))
  jax.config.update('jax_platforms', 'cpu')
  print(f'{table(best)}\n\n{timing.where()}')


def table(best: dict[tuple, float]) -> str:
  """Returns a row for each model and setting."""
  rows = []
  for name in MODELS:
    for devices, heap in SETTINGS:
      seconds = best[name, (devices, heap)]
      rows.append(
        (
          name,
          devices or os.cpu_count(),
          heap,
          f'{seconds * 1e3:.0f}',
          f'{best[name, SETTINGS[0]] / seconds:.2f}',
        )
      )
  header = ('model', 'devices', 'pages', 'ms a step', 'ratio')
  return markdown.table(header, rows)


def measure(name: str, devices: int, heap: str) -> float:
  """Returns the seconds of the best step, in a process of its own."""
  environment = os.environ | {
    'GLIBC_TUNABLES': HEAPS[heap],
    'JAX_PLATFORMS': 'cpu',
  }
  command = [sys.executable, __file__, name, str(devices or os.cpu_count())]
  output = subprocess.check_output(command, env=environment, text=True)
  return json.loads(output.splitlines()[-1])


def step_seconds(name: str, devices: int) -> float:
  """Returns the seconds of the best of a few steps, after compilation."""
  jax.config.update('jax_num_cpu_devices', devices)
  config = _config(name)
  experiment = experiment_lib.build(config)
  train_step = step.make_train_step(experiment)
  current, batch = state.init(experiment), _batch(config)
  seconds = []
  for _ in range(STEPS + 1):
    start = time.perf_counter()
    current, metrics = train_step(current, batch)
    jax.block_until_ready((current, metrics))
    seconds.append(time.perf_counter() - start)
  return min(seconds[1:])


def _config(name: str) -> classification.Config:
  small = dict(patch_size=(7, 7), width=128, depth=6, mlp_dim=512, num_heads=4)
  model = vit.ViTConfig(**(small | MODELS[name]))
  if MODELS[name]:
    moe = model_config.MoEConfig(blocks=(0,), num_experts=128)
    model = dataclasses.replace(model, moe=moe)
  batch_size = 8 if MODELS[name] else 128
  data = image_config.ImageDataConfig(
    image_size=(28, 28), batch_size=batch_size
  )
  return classification.Config(
    model=model,
    data=data,
    mesh='data:1,expert:-1' if MODELS[name] else 'data:-1',
  )


def _batch(config: classification.Config) -> dict[str, jax.Array]:
  rows, data = config.data.batch_size, config.data
  image = jnp.ones((rows, *data.image_size, data.channels), 'uint8')
  label = jnp.zeros((rows,), 'int32')
  batch = {'image': image, 'label': label}
  return jax.device_put(batch, jax.P(sharding.AXES))


if __name__ == '__main__':
  if len(sys.argv) == 3:
    print(json.dumps(step_seconds(sys.argv[1], int(sys.argv[2]))))
  else:
    main()
