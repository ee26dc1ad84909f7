"""How near are layers and steps to what a CPU can do? Ratios of one run.

python benchmarks/cpu.py [soft] [dropless] [steps] [images]

soft: layers of Soft MoE beside the bare matmuls of their experts, each in the
best of its forms, and beside two PyTorch packages if they are installed (torch,
einops, soft-moe-pytorch, soft-moe). dropless: layers of small experts beside a
dense MLP that computes as much. steps: training and inference of whole models,
as a share of the matmul rate. images: Soft MoE at S/16 beside the ViT. Each on
one device that has all cores as threads, and on one device a core.
"""

import argparse
import dataclasses
import functools
import importlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import timing
from flax import nnx
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.bench import cases, machine, measure
from softmoe.costs import flops
from softmoe.models import config as model_config
from softmoe.models import mixtures
from softmoe.process import interleaved, launch
from softmoe.runs import state as state_lib
from softmoe.tables import markdown
from softmoe.tasks import classification
from softmoe.training import step as step_lib

ROUNDS = 5
# Experts and slots of each, and how large the layer is.
SOFT = {
  '8 x 196, 128 x 1': (cases.Size(8, 196, 384, 1536), 128, 1),
  '64 x 196, 128 x 1': (cases.Size(64, 196, 384, 1536), 128, 1),
  '8 x 256, 32 x 8': (cases.Size(8, 256, 512, 2048), 32, 8),
}
DROPLESS = {'2 of 8': (8, 2048), '8 of 64': (64, 256), '2 of 64': (64, 256)}
TEXT = cases.Size(2, 1024, 512, 2048)
# Of an expert: what is multiplied, and how.
PRODUCTS = {
  'up': ('rd,df->rf', 'x', 'up'),
  'down': ('rf,fd->rd', 'h', 'down'),
  'rows of up': ('rf,df->rd', 'h', 'up'),
  'rows of down': ('rd,fd->rf', 'x', 'down'),
  'matrix of up': ('rd,rf->df', 'x', 'h'),
  'matrix of down': ('rf,rd->fd', 'h', 'x'),
}
BARE = {'forward': ('up', 'down'), 'step': tuple(PRODUCTS)}
# A ViT of 64 tokens, and what its last half may be.
SMALL = dict(width=192, depth=6, mlp_dim=768, num_heads=3, patch_size=(4, 4))
STEPS: dict[str, dict[str, Any]] = {
  'ViT': {},
  'Soft MoE': dict(router='soft', num_experts=16, slots_per_expert=4),
  'Tokens Choice': dict(router='tokens_choice', num_experts=16),
}
S16 = dict(width=384, depth=12, mlp_dim=1536, num_heads=6, patch_size=(16, 16))
IMAGES: dict[str, dict[str, Any]] = {
  'ViT': {},
  'Soft MoE': dict(router='soft', num_experts=128),
}


def main() -> None:
  """Prints a Markdown table a part."""
  parts = {part.__name__: part for part in (soft, dropless, steps, images)}
  parser = argparse.ArgumentParser()
  parser.add_argument('parts', nargs='*', metavar='|'.join(parts))
  options = parser.parse_args()
  launch.prepare()
  rates = machine.measure('float32')
  for name in options.parts or parts:
    print(f'{parts[name](rates)}\n', flush=True)
  print(
    f'{rates.flops / 1e9:.0f} GFLOP/s, {rates.memory / 1e9:.1f} GB/s;'
    f' {ROUNDS} rounds, medians; {timing.where()}'
  )


def soft(rates: machine.Rates) -> str:
  """Returns layers beside their bare matmuls and beside the packages."""
  rows = []
  for name, (size, experts, slots) in SOFT.items():
    moe = dict(router='soft', num_experts=experts, slots_per_expert=slots)
    programs = {
      (way, kind): program
      for way in places()
      for kind, program in layer(size, moe, way).items()
    }
    packages = torch_layers(size, experts, slots)
    rows_of_one = size.examples * slots
    for way, product, form, program in bare(size, experts, rows_of_one):
      programs[way, product, form] = program
    seconds = medians(programs | packages)
    for kind in measure.PASSES:
      best = sum(fastest(seconds, product) for product in BARE[kind])
      times = [seconds[way, kind] for way in places()]
      others = [v for k, v in seconds.items() if k in packages and kind in k]
      flop = (4, 12)[kind == 'step'] * experts * rows_of_one
      weights = 8 * experts * size.width * size.mlp_dim
      read = (1, 3)[kind == 'step'] * weights
      floor = rates.floor(flop * size.width * size.mlp_dim, read)
      rows.append(
        (
          *(name, kind, ms(floor), ms(best), *map(ms, times)),
          f'{min(times) / best:.2f}',
          f'{min(others) / min(times):.2f}' if others else '',
        )
      )
  titles = 'Soft MoE', 'pass', 'floor', 'bare', *places()
  return table((*titles, 'best of bare', 'torch of best'), rows)


def dropless(_: machine.Rates) -> str:
  """Returns layers beside dense ones of as many FLOPs."""
  programs = {}
  for name, (experts, hidden) in DROPLESS.items():
    k = int(name.split()[0])
    moe = dict(router='tokens_choice', num_experts=experts, k=k)
    for way in places():
      found = layer(TEXT, moe | dict(expert_dim=hidden), way)
      programs |= {(name, way, kind): p for kind, p in found.items()}
      dense = dataclasses.replace(TEXT, mlp_dim=k * hidden)
      found = layer(dense, None, way)
      programs |= {('dense', name, way, kind): p for kind, p in found.items()}
  seconds = medians(programs)
  rows = []
  for name in DROPLESS:
    for kind in measure.PASSES:
      pairs = [
        (seconds['dense', name, way, kind], seconds[name, way, kind])
        for way in places()
      ]
      cells = [(ms(a), ms(b), f'{b / a:.2f}') for a, b in pairs]
      rows.append((name, kind, *(cell for row in cells for cell in row)))
  titles = [(f'dense, {w}', f'dropless, {w}', 'ratio') for w in places()]
  return table(('experts', 'pass', *(t for one in titles for t in one)), rows)


def steps(rates: machine.Rates) -> str:
  """Returns whole models as shares of the matmul rate."""
  configs = {name: model(SMALL, moe, 32, 32) for name, moe in STEPS.items()}
  programs = {
    (name, way, make.__name__): make(config, way)
    for name, config in configs.items()
    for way in places()
    for make in (inference, training)
  }
  seconds = medians(programs)
  rows = []
  for name, config in configs.items():
    images = config.data.batch_size
    forward = flops.forward(config).flops() * images
    work = {'inference': forward, 'training': 3 * forward}
    for kind, flop in work.items():
      times = [seconds[name, way, kind] for way in places()]
      shares = [f'{flop / s / rates.flops:.2f}' for s in times]
      rows.append((name, kind, *map(ms, times), *shares))
  titles = [f'of the rate, {way}' for way in places()]
  return table(('model', 'program', *places(), *titles), rows)


def images(_: machine.Rates) -> str:
  """Returns the inference of Soft MoE at S/16 beside the ViT's."""
  rows = []
  for batch in (16, 64):
    for way in places():  # one after the other: the experts are gigabytes
      programs = {
        name: inference(model(S16, moe, 224, batch), way, 'data')
        for name, moe in IMAGES.items()
      }
      dense, sparse = medians(programs).values()
      rows.append((batch, way, ms(dense), ms(sparse), f'{sparse / dense:.2f}'))
  return table(('images', 'devices', 'ViT', 'Soft MoE', 'ratio'), rows)


def places() -> tuple[str, str]:
  """Returns names of the two ways to have all cores."""
  return 'one device', f'{jax.device_count()} devices'


def on(way: str, axis: str = 'expert') -> jax.sharding.Mesh:
  """Returns the mesh of one of `places`."""
  devices = jax.devices()[:1] if way == places()[0] else jax.devices()
  return sharding.make_mesh(f'{axis}:-1', devices)


def layer(
  size: cases.Size, moe: dict[str, Any] | None, way: str
) -> dict[str, Callable[[], Any]]:
  """Returns passes of an MoE layer, or of the dense MLP, on random tokens."""
  config = model_config.TransformerConfig(
    width=size.width,
    mlp_dim=size.mlp_dim,
    moe=model_config.MoEConfig(**moe or {}),
  )
  with jax.set_mesh(on(way)):
    make = jax.jit(
      lambda: (
        mixtures.make_moe(config, nnx.Rngs(0))
        if moe
        else mixtures.make_mlp(config, size.mlp_dim, nnx.Rngs(0))
      )
    )
    shape = (size.examples, size.tokens, size.width)
    x = jax.random.normal(jax.random.key(0), shape)
    x = jax.device_put(x, jax.P(sharding.AXES))
    return measure.programs(make(), x)


def bare(
  size: cases.Size, experts: int, rows: int
) -> Iterator[tuple[str, str, str, Callable[[], Any]]]:
  """Yields each product of all experts in each form, and its names."""
  sizes = {'r': rows, 'd': size.width, 'f': size.mlp_dim}
  for way in places():
    mesh = on(way)
    draw = lambda axes, mesh=mesh: jax.device_put(
      jnp.ones((experts, *(sizes[axis] for axis in axes))),
      jax.NamedSharding(mesh, jax.P('expert')),
    )
    arrays = {'x': 'rd', 'h': 'rf', 'up': 'df', 'down': 'fd'}
    arrays = {name: draw(axes) for name, axes in arrays.items()}
    for product, (equation, a, b) in PRODUCTS.items():
      left, right, out = equation.replace('->', ',').split(',')
      all_experts = f'e{left},e{right}->e{out}'
      forms = {
        'at once': functools.partial(jnp.einsum, all_experts),
        'in turn': lambda a, b, one=equation: jax.lax.map(
          lambda pair: jnp.einsum(one, *pair), (a, b)
        ),
      }
      for form, function in forms.items():
        spread = jax.jit(
          jax.shard_map(
            function,
            mesh=mesh,
            in_specs=jax.P('expert'),
            out_specs=jax.P('expert'),
          )
        )
        call = functools.partial(spread, arrays[a], arrays[b])
        yield way, product, form, call


def fastest(seconds: dict[Any, float], product: str) -> float:
  """Returns the seconds of a product in its best form."""
  return min(v for k, v in seconds.items() if len(k) == 3 and k[1] == product)


def torch_layers(
  size: cases.Size, experts: int, slots: int
) -> dict[tuple[str, ...], Callable[[], Any]]:
  """Returns passes of the packages' layers, none where they are not there."""
  try:
    torch, theirs, other = (
      importlib.import_module(name)
      for name in ('torch', 'soft_moe_pytorch', 'soft_moe')
    )
  except ImportError:
    return {}
  torch.set_num_threads(len(launch.cores()))

  def mlp() -> Any:
    up = torch.nn.Linear(size.width, size.mlp_dim)
    down = torch.nn.Linear(size.mlp_dim, size.width)
    return torch.nn.Sequential(up, torch.nn.GELU(), down)

  options = dict(num_experts=experts, num_slots=slots)
  layers = {
    'soft-moe-pytorch': theirs.SoftMoE(size.width, **options),
    'soft-moe': other.SoftMoELayerWrapper(size.width, experts, slots, mlp),
  }
  x = torch.randn(size.examples, size.tokens, size.width, requires_grad=True)

  def forward(module: Any) -> Any:
    with torch.no_grad():
      return module(x)

  def step(module: Any) -> None:
    module.zero_grad()
    module(x).square().sum().backward()

  passes = {'forward': forward, 'step': step}
  return {
    ('torch', name, kind, ''): functools.partial(run, module)
    for name, module in layers.items()
    for kind, run in passes.items()
  }


def model(
  size: dict[str, Any], moe: dict[str, Any], pixels: int, batch: int
) -> config_lib.Config:
  """Returns the config of a classifier, the last half of it mixtures."""
  config = config_lib.default(classification.Config)
  config.model.update(**size)
  config.data.update(image_size=(pixels, pixels), channels=3, num_classes=1000)
  config.data.update(batch_size=batch, eval_batch_size=batch)
  if moe:
    depth = size['depth']
    config.model.moe.update(blocks=tuple(range(depth // 2, depth)), **moe)
  return experiment_lib.parse(config)


def build(
  config: config_lib.Config, way: str, axis: str = 'expert'
) -> tuple[experiment_lib.Experiment, Any]:
  """Returns the experiment in one of `places`, and a batch of no data."""
  mesh = on(way, axis if config.model.moe.blocks else 'data')
  spec = ','.join(f'{name}:{size}' for name, size in mesh.shape.items())
  config = dataclasses.replace(config, mesh=spec)
  experiment = experiment_lib.build(config, list(mesh.devices.flat))
  batch = jax.tree.map(
    lambda v: jax.device_put(jnp.ones(v.shape, v.dtype), v.sharding),
    experiment.abstract_batch(config.data.batch_size),
  )
  return experiment, batch


def inference(*place: Any) -> Callable[[], Any]:
  """Returns the inference of a model: see `build`."""
  experiment, batch = build(*place)
  params = jax.jit(experiment.init_params)()
  infer = jax.jit(
    lambda params, batch: experiment.task.infer(
      nnx.merge(experiment.graphdef, params), batch
    )
  )
  return functools.partial(infer.lower(params, batch).compile(), params, batch)


def training(*place: Any) -> Callable[[], Any]:
  """Returns the training step of a model: see `build`."""
  experiment, batch = build(*place)
  state = state_lib.init(experiment)
  train = step_lib.make_train_step(experiment).lower(state, batch).compile()

  def step() -> Any:
    nonlocal state
    state, metrics = train(state, batch)
    return metrics

  return step


def medians(programs: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
  """Returns the seconds of each, timed in turn."""
  found = interleaved.seconds(programs, ROUNDS)
  return {name: statistics.median(values) for name, values in found.items()}


def ms(seconds: float) -> str:
  """Returns milliseconds."""
  return f'{1e3 * seconds:.1f}'


def table(titles: tuple[str, ...], rows: list[Any]) -> str:
  """Returns a Markdown table whose first two columns are names."""
  return markdown.table(titles, [tuple(map(str, row)) for row in rows], (0, 1))


if __name__ == '__main__':
  main()
