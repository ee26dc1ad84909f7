"""What does it cost a GPU to drop nothing? Compiled for 8 H100, run on none.

pip install 'softmoe[plan-cuda]'
python benchmarks/dropless_on_gpu.py

ViT L/16 with Tokens Choice among 32 experts in its last 12 blocks, bfloat16,
1,024 images, no remat: the training step and inference, dropless and with a
capacity of 1.0, experts split over the devices or copied to all. FLOPs, bytes
and times are those of `python -m softmoe.plan`, at even load: a grouped matmul
counts whole blocks of rows, and what it reads and writes once.
"""

import itertools
import json
import subprocess
import sys
from typing import Any

from softmoe.tables import markdown

CONFIG = (
  '--config=configs/jft4b.py:vit-l16',
  '--config.data.source=synthetic',
  '--config.data.num_classes=1000',
  '--config.data.batch_size=1024',
  '--config.data.eval_batch_size=1024',
  '--config.model.remat=false',
  f'--config.model.moe.blocks={tuple(range(12, 24))}',
  '--config.model.moe.router=tokens_choice',
  '--config.model.moe.num_experts=32',
)
MESHES, CHOICES = ('expert:8', 'data:8'), (1, 2)
CAPACITIES = {'capacity': 1.0, 'dropless': 0.0}
HEADER = (
  'mesh',
  'choices',
  'way',
  'program',
  'temporaries, GiB',
  'TFLOP',
  'of the model',
  'compute, ms',
  'memory, ms',
  'interconnect, ms',
)


def main() -> None:
  """Prints a Markdown table."""
  rows = []
  for mesh, k, way in itertools.product(MESHES, CHOICES, CAPACITIES):
    report = plan(mesh, k, CAPACITIES[way])
    for program in ('train', 'inference'):
      rows.append((mesh, str(k), way, program, *figures(report[program])))
  print(markdown.table(HEADER, rows))
  print(f'\n{report["target"]}, {report["compiler"]}')


def plan(mesh: str, k: int, capacity: float) -> dict[str, Any]:
  """Returns what `softmoe.plan` says of a model."""
  flags = (
    f'--config.mesh={mesh}',
    f'--config.model.moe.k={k}',
    f'--config.model.moe.capacity_factor={capacity}',
    '--target=h100:8',
    '--nosuggest',
    '--json',
  )
  command = [sys.executable, '-m', 'softmoe.plan', *CONFIG, *flags]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


def figures(program: dict[str, Any]) -> tuple[str, ...]:
  """Returns the cells of a program's row; all are of one device."""
  flops, seconds = program['flops'], program['seconds']
  return (
    f'{program["memory"]["temporaries"] / 2**30:.1f}',
    f'{flops["program"] / 1e12:.1f}',
    f'{flops["program"] / flops["model"]:.2f}',
    *(
      f'{seconds[name] * 1e3:.0f}'
      for name in ('compute', 'memory', 'interconnect')
    ),
  )


if __name__ == '__main__':
  main()
