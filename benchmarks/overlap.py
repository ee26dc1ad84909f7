"""What compilers put between the start and the end of an exchange.

Compiles a training step of a ViT with Soft MoE blocks for machines that need
not be here, and reads the schedule: which all-to-alls are asynchronous, and how
much computing lies between their start and their end.

    pip install 'softmoe[plan-tpu,plan-cuda]'
    python benchmarks/overlap.py --targets=v5p:2x2x2,h100:8 --chunks=1,2,4
"""

import argparse
import os
import re

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402

from softmoe import config as config_lib  # noqa: E402
from softmoe import experiment as experiment_lib  # noqa: E402
from softmoe.plan import hlo, targets  # noqa: E402
from softmoe.runs import state as state_lib
from softmoe.tasks import classification
from softmoe.training import step as step_lib  # noqa: E402

# By name: compiler options, the same as flags of LIBTPU_INIT_ARGS or XLA_FLAGS.
OPTIONS = {
  'default': {},
  'async': {'xla_tpu_enable_async_all_to_all': True},
  'sparse core': {
    'xla_tpu_enable_sparse_core_collective_offload_dense_all_to_all': True,
    'xla_tpu_enable_sparse_core_async_all_to_all': True,
  },
  'latency hiding': {'xla_gpu_enable_latency_hiding_scheduler': True},
}
# A call is one on a TPU's sparse core.
STARTS = ('all-to-all-start', 'call-start')
COMPUTES = ('fusion', 'custom-call', 'convolution', 'dot')
MATMUL = re.compile('op_name="[^"]*dot_general')
# Its matmuls are tuned on the GPU, which is not here.
WITHOUT_GPU = {'xla_gpu_enable_triton_gemm': False}


def make_config(chunks: int, num_devices: int) -> classification.Config:
  """Returns L/16's width, two MoE blocks, 16 images a device."""
  config = config_lib.default(classification.Config)
  config.mesh = 'data:-1,expert:8'
  config.optimizer.name = 'sgd'
  config.data.update(image_size=(224, 224), channels=3, num_classes=8)
  batch = 16 * num_devices
  config.data.update(batch_size=batch, eval_batch_size=batch)
  config.model.update(patch_size=(16, 16), width=1024, mlp_dim=4096, depth=2)
  config.model.update(num_heads=16, dtype='bfloat16')
  config.model.moe.update(blocks=(0, 1), num_experts=16, slots_per_expert=16)
  config.model.moe.exchange_chunks = chunks
  return experiment_lib.parse(config)


def compile_step(target: str, chunks: int, options: dict) -> str:
  """Returns the scheduled program of one training step."""
  devices = targets.open_target(target).devices
  config = make_config(chunks, len(devices))
  experiment = experiment_lib.build(config, devices)
  batch = experiment.abstract_batch(config.data.batch_size)
  step = step_lib.make_train_step(experiment)
  lowered = step.lower(state_lib.abstract(experiment), batch)
  options = options | (WITHOUT_GPU if target.startswith('h100') else {})
  return lowered.compile(compiler_options=options).as_text()


def exchanges(text: str) -> tuple[int, list[tuple[int, int]]]:
  """Returns what a schedule says of its all-to-alls.

  Returns:
    The number of those that block, and for every other one the matmuls between
    its start and end, and the estimated cycles of all that computes there (0 on
    a GPU, whose compiler notes none).
  """
  blocking, hidden = 0, []
  for computation, _, _ in hlo.parse(text).executed():
    if computation.thread:
      continue  # what a call on the sparse core started
    flying: dict[str, list[int]] = {}
    for name, instruction in computation.instructions.items():
      started = flying.get(next(iter(instruction.operands), ''))
      if instruction.opcode == 'all-to-all':
        blocking += 1
      elif instruction.opcode in STARTS and 'all_to_all' in (
        instruction.attributes
      ):
        flying[name] = [0, 0]
      elif instruction.opcode.endswith('-done') and started:
        hidden.append(tuple(started))
        del flying[instruction.operands[0]]
      elif instruction.opcode in COMPUTES:
        for counts in flying.values():
          counts[0] += bool(MATMUL.search(instruction.attributes))
          counts[1] += cycles_of(instruction)
  return blocking, hidden


def cycles_of(instruction: hlo.Instruction) -> int:
  """Returns the cycles that a TPU's compiler expects; 0 if it does not say."""
  found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
  return int(found[1]) if found else 0


def row(target: str, name: str, chunks: int) -> str:
  """Returns one line of the table."""
  try:
    blocking, hidden = exchanges(compile_step(target, chunks, OPTIONS[name]))
  except jax.errors.JaxRuntimeError as error:
    return f'| {target} | {name} | {chunks} | {str(error).splitlines()[0]} |'
  matmuls, cycles = map(sum, zip(*hidden, strict=True)) if hidden else (0, 0)
  covered = sum(count > 0 for count, _ in hidden)
  return (
    f'| {target} | {name} | {chunks} | {blocking} | {len(hidden)}'
    f' | {covered} | {matmuls} | {cycles:,} |'
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--targets', default='v5p:2x2x2')
  parser.add_argument('--chunks', default='1,2,4')
  parser.add_argument('--options', default='default,async')
  flags = parser.parse_args()
  print(
    '| target | options | chunks | blocking | asynchronous | with matmuls'
    ' inside | matmuls inside | cycles inside |'
  )
  print('|---|---|---:|---:|---:|---:|---:|---:|')
  for target in flags.targets.split(','):
    for name in flags.options.split(','):
      for chunks in flags.chunks.split(','):
        print(row(target, name, int(chunks)), flush=True)


if __name__ == '__main__':
  main()
