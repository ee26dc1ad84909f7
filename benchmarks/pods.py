"""The tables of docs/pods.md: what the paper's models need and take on slices.

python benchmarks/pods.py sizes      # S/16 to H/14, ViT and Soft MoE, 5 chips
python benchmarks/pods.py headline   # inference of Soft MoE H/14 against ViT
python benchmarks/pods.py scaling    # 8 to 1,024 chips, experts in proportion

Nothing runs: every program is compiled for its slice (softmoe/plan). A column
whose name ends with `*` is analytic, the others are from the compiler. Results
are kept in ~/.cache/softmoe/plan, so that a run that was stopped goes on.
"""

import pathlib
import runpy
import sys

import ml_collections
import timing

from softmoe import experiment as experiment_lib
from softmoe.plan import compiling, estimate, programs, targets
from softmoe.tables import markdown

CONFIG = pathlib.Path(__file__).parents[1] / 'configs' / 'jft4b.py'
get_config = runpy.run_path(str(CONFIG))['get_config']
# Chips that suit a size: TPUs v4, v5e, v5p, v6e, and H100s.
SLICES = {
  's16': ('v4:2x2x4', 'v5e:4x4', 'v5p:2x2x4', 'v6e:4x4', 'h100:8'),
  'b16': ('v4:2x4x4', 'v5e:4x8', 'v5p:2x4x4', 'v6e:4x8', 'h100:2x8'),
  'l16': ('v4:4x4x4', 'v5e:8x8', 'v5p:4x4x4', 'v6e:8x8', 'h100:4x8'),
  'h14': ('v4:4x8x8', 'v5e:16x16', 'v5p:4x8x8', 'v6e:16x16', 'h100:16x8'),
}
HEADLINE = ('v3:4x4', 'v4:4x4x4', 'v5p:4x4x4', 'v6e:8x8', 'h100:8x8')
CHIPS = {
  8: 'v5p:2x2x2',
  32: 'v5p:2x4x4',
  128: 'v5p:4x4x8',
  512: 'v5p:8x8x8',
  1024: 'v5p:8x8x16',
}
SLOTS = 1024  # of an image
GIB = 2**30


def plan(config: ml_collections.ConfigDict, target: str, program: str) -> dict:
  """Returns the estimate of one program."""
  return estimate.estimate(
    experiment_lib.parse(config),
    targets.open_target(target),
    which=(program,),
    cache=compiling.open_cache(''),
  )


def sizes() -> list[list[str]]:
  """Returns a row for each size, model and chip: its training step."""
  rows = []
  for size, names in SLICES.items():
    for model in ('vit', 'soft'):
      for name in names:
        config = get_config(f'{model}-{size}')
        report = plan(config, name, programs.TRAIN)
        rows.append([f'{model}-{size}', name, *_training(report)])
        print('| ' + ' | '.join(rows[-1]) + ' |', file=sys.stderr, flush=True)
  return rows


def _training(report: dict) -> list[str]:
  step = report[programs.TRAIN]
  memory = step['memory']
  fits = 'yes' if memory['fits'] else 'NO'
  cells = [
    f'{report["parameters"] / 1e9:.2f}',
    f'{memory["arguments"] / GIB:.2f}',
    f'{memory["temporaries"] / GIB:.2f}',
    f'{memory["limit"] / GIB:.0f}',
    fits,
  ]
  if 'seconds' not in step:
    return cells + ['-'] * 8
  seconds = step['seconds']
  return cells + [
    *(_mib(step, kind) for kind in ('all-to-all', 'all-reduce')),
    *(_ms(seconds[name]) for name in ('compute', 'memory', 'interconnect')),
    _ms(seconds['scheduled']),
    f'{step["images_per_second"]:,.0f}',
    f'{step["chip_hours"]:,.0f}',
  ]


def headline() -> list[list[str]]:
  """Returns a row for each chip: the dense model, Soft MoE, and the ratio."""
  rows = []
  for name in HEADLINE:
    parts = []
    for model in ('vit', 'soft'):
      config = get_config(f'{model}-h14')
      if model == 'soft':
        config.model.moe.num_experts = 128
        chips = len(targets.open_target(name).devices)
        config.mesh = f'data:-1,expert:{min(chips, 128)}'
      parts.append(plan(config, name, programs.INFERENCE)[programs.INFERENCE])
      rows.append([name, f'{model}-h14', *_inference(parts[-1])])
    dense, soft = parts
    rows.append([name, 'soft / vit', *_ratio(dense, soft)])
    print(*rows[-3:], sep='\n', file=sys.stderr, flush=True)
  return rows


def _inference(step: dict) -> list[str]:
  seconds = step['seconds']
  return [
    f'{step["flops"]["program"] / 1e12:.3f}',
    f'{step["traffic"] / GIB:.2f}',
    _mib(step, 'all-to-all'),
    *(_ms(seconds[n]) for n in ('compute', 'memory', 'interconnect')),
    _ms(seconds['roofline']),
    _ms(seconds['scheduled']),
    _ms(_in_turn(seconds)),
  ]


def _in_turn(seconds: dict) -> float | None:
  """Returns the time if nothing hides behind the exchange."""
  cores = seconds['scheduled']
  return cores and cores + seconds['interconnect']


def _ratio(dense: dict, soft: dict) -> list[str]:
  over = lambda a, b: f'{b / a:.3f}' if a and b else '-'
  a, b = dense['seconds'], soft['seconds']
  return [
    over(dense['flops']['program'], soft['flops']['program']),
    over(dense['traffic'], soft['traffic']),
    '-',
    *(over(a[n], b[n]) for n in ('compute', 'memory')),
    '-',
    over(a['roofline'], b['roofline']),
    over(a['scheduled'], b['scheduled']),
    over(_in_turn(a), _in_turn(b)),
  ]


def scaling() -> list[list[str]]:
  """Returns a row for each number of chips: Soft MoE B/16, 16 images a chip.

  As many experts as chips, and as many slots in all whatever their number.
  """
  rows = []
  for chips, name in CHIPS.items():
    config = get_config('soft-b16')
    config.data.batch_size = 16 * chips
    config.model.moe.num_experts = chips
    config.model.moe.slots_per_expert = SLOTS // chips
    report = plan(config, name, programs.TRAIN)
    step = report[programs.TRAIN]
    rows.append(
      [
        f'{chips:,}',
        name,
        f'{report["parameters"] / 1e9:.2f}',
        f'{step["memory"]["arguments"] / GIB:.2f}',
        f'{step["memory"]["temporaries"] / GIB:.2f}',
        _mib(step, 'all-to-all'),
        _mib(step, 'all-reduce'),
        *(_ms(step['seconds'][n]) for n in ('compute', 'memory')),
        _ms(step['seconds']['interconnect']),
        _ms(step['seconds']['roofline']),
      ]
    )
    print(rows[-1], file=sys.stderr, flush=True)
  return rows


def _mib(step: dict, kind: str) -> str:
  sent = step['collectives'].get(kind, {'bytes': 0})['bytes']
  return f'{sent / 2**20:,.0f}'


def _ms(seconds: float | None) -> str:
  return '-' if seconds is None else f'{seconds * 1e3:,.1f}'


_TIMES = ['compute, ms *', 'memory, ms *', 'interconnect, ms *']
_MEMORY = ['parameters, 1e9', 'state, GiB', 'temporaries, GiB']
_SENT = ['all-to-all, MiB', 'all-reduce, MiB']
TABLES = {
  'sizes': (
    sizes,
    [
      *('model', 'slice', *_MEMORY, 'memory, GiB', 'fits', *_SENT, *_TIMES),
      *('cores by the compiler, ms', 'images/s, at most *'),
      'chip-hours, at least *',
    ],
  ),
  'headline': (
    headline,
    [
      *('slice', 'model', 'TFLOP', 'traffic, GiB', 'all-to-all, MiB'),
      *(*_TIMES, 'roofline, ms *', 'cores by the compiler, ms'),
      'cores, then exchange, ms *',
    ],
  ),
  'scaling': (
    scaling,
    ['chips', 'slice', *_MEMORY, *_SENT, *_TIMES, 'roofline, ms *'],
  ),
}


def main(names: list[str]) -> None:
  """Prints the tables, all if none is named."""
  for name in names or TABLES:
    make, header = TABLES[name]
    rows = make()
    print(timing.where())
    print(markdown.table(header, rows), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
