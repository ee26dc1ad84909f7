"""Does a lower threshold cost less? XMoE's layer, dropless and with capacity.

python benchmarks/dropless.py

Times forward plus backward of one language-model layer, 4,096 tokens of width
512 and 64 experts of hidden width 256, at thresholds that make a token want 8,
4 and 2 experts on average: dropless; with the capacity that fits 8, as the
authors run it; and a dense MLP that computes as much as the wanted experts do.
The time at 0 experts, with all tokens masked out, is the fixed part: routing,
and writing a gradient of zeros for every weight. The last column is the share
of the time at 8 that is left above it; a capacity leaves nothing to follow.
"""

from collections.abc import Callable
from typing import Any

import jax
import timing
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import experts, layer, mlp
from softmoe.moe.routers import threshold
from softmoe.tables import markdown

TOKENS, WIDTH, EXPERTS, HIDDEN = 4096, 512, 64, 256
WANTED = (8, 4, 2)
SHARPNESS = 8.0  # a fresh router wants nearly every expert for every token
ROUNDS = 10


def main() -> None:
  """Prints a Markdown table."""
  x = jax.random.normal(jax.random.key(0), (1, TOKENS, WIDTH))
  dropless = make_layer(mode='dropless')
  capacity = make_layer(mode='capacity', capacity_factor=float(max(WANTED)))
  steps = {}
  for wanted in WANTED:
    t = jnp.float32(find_threshold(dropless, x, wanted))
    dense = mlp.Mlp(WIDTH, wanted * HIDDEN, rngs=nnx.Rngs(0))
    steps['dropless', wanted] = make_step(dropless, x, threshold=t)
    steps['capacity', wanted] = make_step(capacity, x, threshold=t)
    steps['dense', wanted] = make_step(dense, x)
  nothing = jnp.zeros(x.shape[:2], bool)
  for name, moe in (('dropless', dropless), ('capacity', capacity)):
    steps[name, 0] = make_step(moe, x, mask=nothing)
  seconds = timing.interleaved(steps, ROUNDS)
  executed = {
    (name, wanted): float(run()[1].get('executed', wanted))
    for (name, wanted), run in steps.items()
  }
  print(f'{timing.where()}\n\n{table(seconds, executed)}')


def make_layer(**options: Any) -> layer.MoE:
  """Returns the layer with a router that has made up its mind."""
  router = threshold.Threshold(WIDTH, EXPERTS, rngs=nnx.Rngs(0), **options)
  router.kernel[...] *= SHARPNESS
  create = lambda rngs: mlp.Mlp(WIDTH, HIDDEN, rngs=rngs)
  return layer.MoE(router, experts.Experts(create, EXPERTS, rngs=nnx.Rngs(1)))


def find_threshold(moe: layer.MoE, x: jax.Array, wanted: float) -> float:
  """Returns the threshold at which a token wants so many experts on average."""
  count = jax.jit(lambda t: moe.router(x[0], threshold=t)[0].wanted().sum())
  low, high = 0.0, 1.0
  for _ in range(20):
    middle = (low + high) / 2
    enough = count(jnp.float32(middle)) >= wanted * TOKENS
    low, high = (low, middle) if enough else (middle, high)
  return high


def make_step(module: Any, x: jax.Array, **options: Any) -> Callable:
  """Returns forward and backward pass: () -> (gradients, metrics)."""
  graphdef, params = nnx.split(module)

  def loss(params, x, options):
    y = nnx.merge(graphdef, params)(x, **options)
    y, aux = y if isinstance(y, tuple) else (y, {'metrics': {}})
    return jnp.sum(jnp.square(y)), aux['metrics']

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  return lambda: run(params, x, options)


def table(seconds: dict[Any, float], executed: dict[Any, float]) -> str:
  """Returns a row for each way and number of experts."""
  rows = []
  for (name, n), value in sorted(seconds.items(), reverse=True):
    fixed, most = seconds.get((name, 0), 0), seconds[name, WANTED[0]]
    dense = f'{value / seconds["dense", n]:.2f}' if n else ''
    left = f'{(value - fixed) / (most - fixed):.2f}'
    rows.append(
      (
        name,
        n,
        f'{executed[name, n]:.2f}' if n else '',
        f'{value * 1e3:.0f}',
        dense,
        '' if name == 'capacity' else left,
      )
    )
  header = ('way', 'wanted', 'executed', 'ms', 'of dense', 'above 0, of 8')
  return markdown.table(header, rows)


if __name__ == '__main__':
  main()
