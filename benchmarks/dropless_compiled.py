"""What does it cost to drop nothing? Compiled for 8 accelerators, run on none.

pip install 'softmoe[plan-cuda]'
python benchmarks/dropless_compiled.py h100:8

or with [plan-tpu] and v5p:2x2x2. ViT L/16, bfloat16, 1,024 images, no remat,
its last 12 blocks mixtures: Tokens Choice among 32 experts, XMoE among 64 of an
eighth of their width; dropless and with a capacity, experts split over the
devices or copied to all. On a GPU attention is a kernel too. All is what
`python -m softmoe.plan` says, at an even load, and at the worst, where all
tokens want experts of one device. Further arguments are of it, such as
--config.model.scan=false.
"""

import itertools
import json
import subprocess
import sys
from typing import Any

CONFIG = (
  '--config=configs/jft4b.py:vit-l16',
  '--config.data.source=synthetic',
  '--config.data.num_classes=1000',
  '--config.data.batch_size=1024',
  '--config.data.eval_batch_size=1024',
  '--config.model.remat=false',
  f'--config.model.moe.blocks={tuple(range(12, 24))}',
)
SPARSE = {
  'Tokens Choice, 1': {'router': 'tokens_choice', 'num_experts': 32, 'k': 1},
  'Tokens Choice, 2': {'router': 'tokens_choice', 'num_experts': 32, 'k': 2},
  'XMoE': {'router': 'threshold', 'num_experts': 64, 'expert_dim': 512},
}
MESHES = 'expert:8', 'data:8'
WAYS = 'capacity', 'dropless'
HEADER = (
  'mesh',
  'router',
  'way',
  'program',
  'temporaries, GiB',
  'TFLOP',
  'of the model',
  'compute, ms',
  'memory, ms',
  'interconnect, ms',
  'rounds at worst',
  'roofline at worst, ms',
)


def main() -> None:
  """Prints the rows of a Markdown table, each as soon as it is known."""
  target = sys.argv[1] if len(sys.argv) > 1 else 'h100:8'
  print(f'{target}\n\n| {" | ".join(HEADER)} |')
  print(f'|{" --- |" * len(HEADER)}', flush=True)
  for mesh, router, way in itertools.product(MESHES, SPARSE, WAYS):
    report = plan(target, mesh, SPARSE[router] | capacity(router, way))
    for program in ('train', 'inference'):
      cells = mesh, router, way, program, *figures(report[program])
      print(f'| {" | ".join(cells)} |', flush=True)


def capacity(router: str, way: str) -> dict[str, float]:
  """Returns the factor that has room for an even load, or that for all."""
  # XMoE is taken to want 2 experts a token, and its factor does not know that.
  even = 2.0 if router == 'XMoE' else 1.0
  return {'capacity_factor': even if way == 'capacity' else 0.0}


def plan(target: str, mesh: str, fields: dict[str, Any]) -> dict[str, Any]:
  """Returns what `softmoe.plan` says of a model."""
  # See `models.attention.choose`.
  attention = 'pallas' if target.startswith('h100') else 'plain'
  flags = (
    f'--config.model.attention={attention}',
    *(f'--config.model.moe.{name}={value}' for name, value in fields.items()),
    f'--config.mesh={mesh}',
    f'--target={target}',
    '--nosuggest',
    '--json',
    *sys.argv[2:],
  )
  command = [sys.executable, '-m', 'softmoe.plan', *CONFIG, *flags]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


def figures(program: dict[str, Any]) -> tuple[str, ...]:
  """Returns the cells of a program's row; all are of one device."""
  flops, seconds = program['flops'], program.get('seconds', {})
  worst = program.get('worst')
  return (
    f'{program["memory"]["temporaries"] / 2**30:.2f}',
    f'{flops["program"] / 1e12:.1f}' + ('' if flops['exact'] else ' at least'),
    f'{flops["program"] / flops["model"]:.2f}',
    *(
      f'{seconds[name] * 1e3:.0f}' if seconds else ''
      for name in ('compute', 'memory', 'interconnect')
    ),
    str(worst['rounds']) if worst else '1',
    f'{worst["seconds"]["roofline"] * 1e3:.0f}' if worst else '',
  )


if __name__ == '__main__':
  main()
