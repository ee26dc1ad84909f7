"""Are the layers right on this accelerator, and how fast?

python benchmarks/accelerator.py OUT

writes OUT/report.json and OUT/report.md, a part as soon as it is done: every
kind of layer against float32 loops over tokens and experts, forward and
gradient; layers beside dense MLPs (`python -m softmoe.bench`); training and
inference steps, with the roofline that `python -m softmoe.plan` computes of
what the device's own compiler made of them. On one device, in bfloat16 but for
the loops; no data are read. `--smoke` does so with models of no size.
"""

import argparse
import dataclasses
import json
import pathlib
import runpy
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
import timing
from flax import nnx

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.bench import cases, machine, measure, table
from softmoe.costs import chips
from softmoe.data import prefetch
from softmoe.models import vit
from softmoe.plan import estimate, programs, targets
from softmoe.runs import state as state_lib
from softmoe.tables import markdown

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the loops are those of the tests
from tests.moe import layer_cases, layer_loops  # noqa: E402

# Examples, tokens, width, experts, hidden width: odd ones, and full tiles.
SHAPES = (4, 5, 6, 8, 7), (2, 32, 64, 8, 128)
# Of the size of array that they are of: float32 rounding of long sums.
TOLERANCE = 1e-4
SMALL = dict(num_experts=64, expert_dim=192, capacity_factor=0.0)
MODELS: dict[str, dict[str, Any]] = {
  'ViT': {},
  'Soft MoE': dict(router='soft', num_experts=128),
  'Tokens Choice': dict(router='tokens_choice', num_experts=32),
  'Tokens Choice, dropless': dict(
    router='tokens_choice', num_experts=32, capacity_factor=0.0
  ),
  'XMoE': dict(router='threshold') | SMALL,
}
VARIANTS = {'s16': 128, 'b16': 128, 'l16': 32}  # and the images of a batch
TINY = dict(width=32, mlp_dim=64, num_heads=2, depth=2)


def main() -> None:
  """Runs the parts, and writes the report after each."""
  parser = argparse.ArgumentParser()
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--smoke', action='store_true')
  options = parser.parse_args()
  if options.out.exists():
    parser.error(f'OUT: got {str(options.out)!r}; a folder that is not there')
  options.out.mkdir(parents=True)
  # What the roofline is read off is compiled once, then run.
  jax.config.update('jax_compilation_cache_dir', str(options.out / 'compiled'))
  report: dict[str, Any] = {'where': timing.where()}
  texts = [report['where']]
  for part in (check, layers, steps):
    report[part.__name__], text = part(options.smoke)
    texts.append(text)
    print(text + '\n', flush=True)
    content = json.dumps(report, default=dataclasses.asdict, indent=2)
    (options.out / 'report.json').write_text(content)
    (options.out / 'report.md').write_text('\n\n'.join(texts) + '\n')
  wrong = [row for row in report['check'] if not row['right']]
  sys.exit(f'{len(wrong)} layers are wrong' if wrong else 0)


def check(smoke: bool) -> tuple[list[dict[str, Any]], str]:
  """Returns how far layers are from the loops, by router and shape."""
  shapes = SHAPES[:1] if smoke else SHAPES
  with jax.default_matmul_precision('highest'):
    rows = [_check(name, s) for name in layer_cases.CASES for s in shapes]
  cells = [
    (r['layer'], str(r['shape']), f'{r["error"]:.1e}', str(r['right']))
    for r in rows
  ]
  titles = 'layer', 'shape', 'largest error', f'within {TOLERANCE}'
  return rows, markdown.table(titles, cells, (0, 1))


def _check(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
  case = layer_cases.draw(name, shape, seed=1)
  graphdef = nnx.graphdef(layer_cases.make(name, shape))
  y, aux, gradients = jax.jit(layer_cases.run, static_argnums=0)(
    graphdef, *case
  )
  by_loops = layer_loops.by_loops(name, shape, 1)
  found = y, aux['losses'], gradients
  expected = by_loops[0], by_loops[1]['losses'], by_loops[2]
  errors = jax.tree.leaves(jax.tree.map(_error, found, expected))
  error = float(max(errors))  # NaN is within no tolerance
  right = all(e <= TOLERANCE for e in errors)
  return {'layer': name, 'shape': shape, 'error': error, 'right': right}


def _error(found: Any, expected: Any) -> float:
  size = max(1, np.max(np.abs(expected)))
  return np.max(np.abs(np.asarray(found) - expected)) / size


def layers(smoke: bool) -> tuple[dict[str, Any], str]:
  """Returns the rows of `softmoe.bench` by size."""
  rates = machine.measure('bfloat16')
  sizes = {'tiny': cases.Size(2, 8, 64, 128)} if smoke else cases.SIZES
  rows = {
    name: measure.measure(
      size, list(cases.LAYERS), dtype='bfloat16', rates=rates, rounds=10
    )
    for name, size in sizes.items()
  }
  text = '\n\n'.join(
    table.write(name, of_size) for name, of_size in rows.items()
  )
  return {'rates': rates, 'sizes': rows}, text


def steps(smoke: bool) -> tuple[list[dict[str, Any]], str]:
  """Returns what steps of whole models take, beside their rooflines."""
  variants = {'s16': 8} if smoke else VARIANTS
  rows = [
    row
    for variant, images in variants.items()
    for model in MODELS
    for row in _steps(model, variant, images, smoke)
  ]
  titles = (
    'model', 'variant', 'program', 'ms', 'images/s', 'of the peak',
    'roofline, ms', 'memory, GiB',
  )  # fmt: skip
  return rows, markdown.table(titles, [_cells(row) for row in rows], (0, 1, 2))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
  told = lambda value, form: '' if value is None else form.format(value)
  return (
    row['model'],
    row['variant'],
    row['program'],
    told(row['seconds'] * 1e3, '{:.2f}'),
    told(row['images'] / row['seconds'], '{:,.0f}'),
    told(row['mfu'], '{:.1%}'),
    told(row['roofline'] and row['roofline'] * 1e3, '{:.2f}'),
    told(row['memory'] / 2**30, '{:.1f}'),
  )


def _steps(
  model: str, variant: str, images: int, smoke: bool
) -> list[dict[str, Any]]:
  """Returns a row of the training step and one of inference."""
  config, device = _config(model, variant, images, smoke), jax.devices()[0]
  chip = chips.of_kind(device.device_kind)
  target = targets.Target('here', chip, (device,), (1, 1), 'this device')
  told = estimate.estimate(config, target)
  rows = []
  for program, seconds in _time(config, device).items():
    flops = told[program]['flops']['model']
    at_peak = flops / chip.flops if chip else None
    rows.append(
      {
        'model': model,
        'variant': variant,
        'program': program,
        'images': images,
        'seconds': seconds,
        'mfu': at_peak and at_peak / seconds,
        'roofline': told[program].get('seconds', {}).get('roofline'),
        'memory': told[program]['memory']['total'],
      }
    )
  return rows


def _config(model: str, variant: str, images: int, smoke: bool) -> Any:
  fields = runpy.run_path(str(ROOT / 'configs' / 'jft4b.py'))
  config = fields['get_config'](f'vit-{variant}')
  edge = 32 if smoke else 224
  config.data.update(
    source=f'fake:{edge}x{edge}x3,classes=1000',
    train_split='train',
    num_classes=1000,
    image_size=(edge, edge),
    batch_size=images,
    eval_batch_size=images,
    threads=0,
  )
  config.model.update(remat=False)
  config.model.update(TINY if smoke else {})
  if MODELS[model]:
    blocks = vit.last_half(config.model.depth)
    config.model.moe.update(MODELS[model], blocks=blocks)
  return experiment_lib.parse(config)


def _time(config: config_lib.Config, device: jax.Device) -> dict[str, float]:
  """Returns the median seconds of the programs of a config."""
  experiment = experiment_lib.build(config, [device])
  rows = prefetch.local_rows(experiment.mesh, config.data.batch_size)
  batches = experiment.task.train_batches(rows)
  batch = next(prefetch.to_devices(batches, experiment.mesh, 0))
  build = lambda program: programs.trace(experiment, program).lower().compile()
  infer, step = build(programs.INFERENCE), build(programs.TRAIN)
  state, found = state_lib.init(experiment), {}
  params = state['params']
  found[programs.INFERENCE] = _median(lambda: infer(params, batch))

  def train():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics

  found[programs.TRAIN] = _median(train)
  return found


def _median(call: Any, rounds: int = 20) -> float:
  """Returns the median seconds of a call, after three that do not count."""
  seconds = []
  for _ in range(rounds + 3):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[3:])


if __name__ == '__main__':
  main()
