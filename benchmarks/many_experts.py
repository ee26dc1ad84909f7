"""Does a step get slower with more experts? At equal computation, by router.

python benchmarks/many_experts.py 128

Times forward plus backward of one layer of width 192 on so many images (128 if
not given, a multiple of 8) of 256 tokens, with 8 to 1,024 experts that share
1,024 slots an image. Soft MoE mixes within an image; Tokens Choice (k = 1) and
Experts Choice route 8 images together, with a capacity factor of 4. More
experts are more weights: `weights` is the time of reading each weight twice and
writing its gradient once, by passes that do nothing else, and the last columns
are ratios to 8 experts, of the whole and without that.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import timing
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import experts, layer, mlp
from softmoe.moe.routers import experts_choice, soft, tokens_choice
from softmoe.tables import markdown

GROUP, TOKENS = 8, 256
WIDTH, HIDDEN, SLOTS = 192, 768, 1024
NUM_EXPERTS = (8, 32, 128, 512, 1024)
ROUNDS = 4


def main(images: int = 128) -> None:
  """Prints a Markdown table."""
  x = jax.random.normal(jax.random.key(0), (images, TOKENS, WIDTH))
  seconds = {}
  for n in NUM_EXPERTS:  # one size at a time: the largest takes gigabytes
    layers = {name: make(n) for name, make in ROUTERS.items()}
    steps = {name: make_step(moe, x) for name, moe in layers.items()}
    steps['weights'] = read_weights(layers['Soft MoE'].experts)
    timed = timing.interleaved(steps, ROUNDS)
    seconds |= {(name, n): value for name, value in timed.items()}
  print(f'{timing.where()}\n\n{table(seconds)}')


def make_layer(router: Any, num_experts: int, **options: Any) -> layer.MoE:
  """Returns the layer with MLPs as experts."""
  create = lambda rngs: mlp.Mlp(WIDTH, HIDDEN, rngs=rngs)
  stack = experts.Experts(create, num_experts, rngs=nnx.Rngs(1))
  return layer.MoE(router, stack, **options)


ROUTERS: dict[str, Callable[[int], layer.MoE]] = {
  'Soft MoE': lambda n: make_layer(
    soft.SoftRouter(WIDTH, n, SLOTS // n, rngs=nnx.Rngs(0)), n
  ),
  'Tokens Choice': lambda n: make_layer(
    tokens_choice.TokensChoice(
      WIDTH, n, k=1, capacity_factor=SLOTS / TOKENS, rngs=nnx.Rngs(0)
    ),
    n,
    group_size=GROUP,
  ),
  'Experts Choice': lambda n: make_layer(
    experts_choice.ExpertsChoice(
      WIDTH, n, capacity_factor=SLOTS / TOKENS, rngs=nnx.Rngs(0)
    ),
    n,
    group_size=GROUP,
  ),
}


def make_step(moe: layer.MoE, x: jax.Array) -> Callable:
  """Returns forward and backward pass."""
  graphdef, params = nnx.split(moe)

  def loss(params, x):
    return jnp.sum(jnp.square(nnx.merge(graphdef, params)(x)[0]))

  run = jax.jit(jax.grad(loss, argnums=(0, 1)))
  return lambda: run(params, x)


def read_weights(stack: experts.Experts) -> Callable:
  """Returns a function that moves the weights as a step must, and no more."""
  params = nnx.state(stack)
  total = jax.jit(lambda p: sum(jnp.sum(w) for w in jax.tree.leaves(p)))
  write = jax.jit(lambda p, s: jax.tree.map(lambda w: w + s, p))
  return lambda: write(params, total(params))


def table(seconds: dict[Any, float]) -> str:
  """Returns a row for each router and number of experts."""
  rows = []
  for name in ROUTERS:
    for n in NUM_EXPERTS:
      whole, weights = seconds[name, n], seconds['weights', n]
      first, first_weights = seconds[name, 8], seconds['weights', 8]
      rows.append(
        (
          name,
          n,
          f'{whole * 1e3:.0f}',
          f'{weights * 1e3:.0f}',
          f'{whole / first:.2f}',
          f'{(whole - weights) / (first - first_weights):.2f}',
        )
      )
  header = ('router', 'experts', 'ms', 'weights ms', 'of 8', 'of 8 without')
  return markdown.table(header, rows)


if __name__ == '__main__':
  main(*map(int, sys.argv[1:]))
