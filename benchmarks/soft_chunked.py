"""What soft dispatch and combine cost with all weights in memory, and in tiles.

python benchmarks/soft_chunked.py             # this machine's CPU, float32
python benchmarks/soft_chunked.py v5p:2x2x1   # or h100:1: bfloat16 tokens

Nothing runs: each program is compiled, for one device. It is the router,
dispatch and combine of Soft MoE without experts, at the paper's shapes and at
long ones, forward and with gradients. Temporaries are the compiler's; FLOPs
are those of the matrix products, and what is moved are the bytes that its
program reads from and writes to memory, loops counted as often as they run.
A group has so many tokens and slots; below or at `soft.MOST_WEIGHTS` the layer
takes the first way, above it the second.
"""

import os
import sys
from collections.abc import Callable

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import timing
from flax import nnx
from jax import numpy as jnp

from softmoe import sharding
from softmoe.moe.execution import run as execution
from softmoe.moe.routers import soft
from softmoe.plan import compiling, flop_count, hlo, targets, traffic
from softmoe.tables import markdown

# Groups, tokens, experts, slots of each, width.
SHAPES = {
  'S/16': (16, 196, 128, 1, 384),
  'H/14': (16, 256, 256, 16, 1280),
  '4,096': (1, 4096, 64, 64, 1024),
  '16,384': (1, 16384, 64, 256, 1024),
}
FORWARD, STEP = 'forward', 'with gradients'
MIB, GIB = 2**20, 2**30


def at_once(router: soft.SoftRouter, x: jax.Array) -> jax.Array:
  """Returns what slots hold, given back to the tokens."""
  return execution.run_slots(router(x)[0], x, lambda slots: slots).y


def in_tiles(router: soft.SoftRouter, x: jax.Array) -> jax.Array:
  """Returns the same, with no array of tokens x slots."""
  routed = router.factors(x)
  assert routed is not None
  return execution.run_factors(routed, x, lambda slots: slots).y


def step(way: Callable) -> Callable:
  """Returns the gradients of router and tokens."""
  loss = lambda router, x: jnp.sum(jnp.sin(way(router, x).astype(jnp.float32)))
  return jax.grad(loss, (0, 1))


def measure(
  run: Callable, shape: tuple[int, ...], target: targets.Target
) -> list[str]:
  """Returns the numbers of one program."""
  groups, tokens, experts, slots, width = shape
  place = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())
  router = sharding.abstract(
    lambda: soft.SoftRouter(width, experts, slots, rngs=nnx.Rngs(0)),
    jax.sharding.get_mesh(),
  )
  dtype = jnp.bfloat16 if target.chip else jnp.float32
  x = jax.ShapeDtypeStruct((groups, tokens, width), dtype, sharding=place)
  traced = jax.jit(run).trace(router, x)
  flops, _ = flop_count.count(traced.jaxpr)
  cache = compiling.open_cache('')
  compiled = compiling.compile_program(traced, target, cache)
  moved = traffic.num_bytes(hlo.parse(compiled.text)) if compiled.text else None
  return [
    f'{compiled.temporaries / MIB:,.0f}',
    f'{flops / 1e9:,.0f}',
    '-' if moved is None else f'{moved / GIB:,.2f}',
  ]


def main(name: str = 'cpu:1') -> None:
  """Prints a Markdown table for a target."""
  soft.MOST_WEIGHTS = 0  # else few weights have no factors
  target = targets.open_target(name)
  jax.set_mesh(sharding.make_mesh('data:1', target.devices[:1]))
  rows = []
  for label, shape in SHAPES.items():
    groups, tokens, experts, slots, width = shape
    for kind, make in ((FORWARD, lambda way: way), (STEP, step)):
      for way in (at_once, in_tiles):
        numbers = measure(make(way), shape, target)
        sizes = f'{groups} x {tokens:,}', f'{experts * slots:,}', str(width)
        rows.append(
          [label, *sizes, kind, way.__name__.replace('_', ' '), *numbers]
        )
        print(rows[-1], file=sys.stderr, flush=True)
  header = ['shape', 'tokens', 'slots', 'width', 'pass', 'weights']
  header += ['temporaries, MiB', 'GFLOP', 'moved, GiB']
  print(f'{target.name}, {target.compiler}; {timing.where()}\n')
  print(markdown.table(header, rows))


if __name__ == '__main__':
  main(*sys.argv[1:])
