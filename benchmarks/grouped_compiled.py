"""Grouped matmuls compiled for a TPU that is not here: which is the leanest?

pip install 'softmoe[plan-tpu]'
python benchmarks/grouped_compiled.py v5p:2x2x1

The three matmuls of an expert's layer in a training step, each compiled alone
for one device and run on none: rows times matrices, the gradient of the rows,
that of the matrices. `ours` is what the layer runs. `ragged_dot` is jax's, its
results in float32 and in the rows' type, and its own gradients. `megablox` are
the kernels that come with jax, which cannot say over which axes of a mesh their
results vary, as a layer's have to. Moved are the bytes that the program reads
from and writes to main memory: of a kernel its operands and results, and of
ours also what its grid reads again.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import timing
from jax import numpy as jnp

from softmoe.moe.execution import grouped_matmul
from softmoe.plan import compiling, flop_count, hlo, kernels, targets, traffic
from softmoe.tables import markdown

# Rows, width, hidden width and experts of a device. Of ViT L/16 on `expert:8`,
# 1,024 images and a buffer of 1.25 of the mean, in whole blocks, which megablox
# asks for: Tokens Choice among 32 experts, XMoE among 64 of an eighth of the
# width, at two a token.
SHAPES = {
  'Tokens Choice, 1 of 32': (31744, 1024, 4096, 4),
  'XMoE, 64 small ones': (63488, 1024, 512, 8),
}
MIB, GIB = 2**20, 2**30
TILING = 512, 1024, 1024  # of megablox: that of our kernel


def ways() -> Iterator[tuple[str, str, Callable]]:
  """Yields matmul, name and function of rows, matrices, dy and sizes."""
  own = functools.partial(
    grouped_matmul.grouped_matmul, implementation='ragged_dot'
  )
  in_float32 = functools.partial(
    jax.lax.ragged_dot, preferred_element_type=jnp.float32
  )
  for name, multiply in (
    ('ours', own),
    ('ragged_dot', jax.lax.ragged_dot),
    ('ragged_dot, float32', lambda x, w, sizes: in_float32(x, w, sizes)),
  ):
    yield 'rows', name, forward(multiply)
    yield 'gradient of rows', name, gradient(multiply, 0)
    yield 'gradient of matrices', name, gradient(multiply, 1)
  yield from megablox()


def forward(multiply: Callable) -> Callable:
  """Returns the product alone."""
  return lambda x, w, dy, sizes: multiply(x, w, sizes).astype(x.dtype)


def gradient(multiply: Callable, argument: int) -> Callable:
  """Returns the gradient of rows (0) or of matrices (1)."""

  def run(x, w, dy, sizes):
    product = lambda x, w: multiply(x, w, sizes).astype(x.dtype)
    return jax.vjp(product, x, w)[1](dy)[argument]

  return run


def megablox() -> Iterator[tuple[str, str, Callable]]:
  """Yields the kernels that come with jax."""
  folder = 'jax.experimental.pallas.ops.tpu.megablox'
  kernels = importlib.import_module(f'{folder}.gmm')
  # They ask what the default device is, which is none of the target's.
  common = importlib.import_module(f'{folder}.common')
  common.is_tpu, common.tpu_kind = lambda: True, lambda: 'TPU v5p'
  types = dict(preferred_element_type=jnp.bfloat16, tiling=TILING)
  multiply = functools.partial(kernels.gmm, **types)
  yield 'rows', 'megablox', lambda x, w, dy, sizes: multiply(x, w, sizes)
  yield (
    'gradient of rows',
    'megablox',
    lambda x, w, dy, sizes: multiply(dy, w, sizes, transpose_rhs=True),
  )
  yield (
    'gradient of matrices',
    'megablox',
    lambda x, w, dy, sizes: kernels.tgmm(x.T, dy, sizes, **types),
  )


def measure(
  run: Callable, shape: tuple[int, ...], target: targets.Target
) -> list[str]:
  """Returns the numbers of one program."""
  n, d, f, e = shape
  place = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())
  array = functools.partial(jax.ShapeDtypeStruct, sharding=place)
  rows = [array((n, width), jnp.bfloat16) for width in (d, f)]
  w, sizes = array((e, d, f), jnp.bfloat16), array((e,), jnp.int32)
  traced = jax.jit(run).trace(rows[0], w, rows[1], sizes)
  cache = compiling.open_cache('')
  compiled = compiling.compile_program(traced, target, cache)
  moved = traffic.num_bytes(hlo.parse(compiled.text))
  flops = compiled.flops
  if flops < n:  # the compiler knows nothing of our kernel
    flops, _ = flop_count.count(traced.jaxpr)
    moved += flop_count.count(traced.jaxpr, _reread)[0]
  return [
    f'{flops / 1e9:,.0f}',
    f'{moved / GIB:,.2f}',
    f'{compiled.temporaries / MIB:,.0f}',
  ]


def _reread(equation) -> tuple[int, bool] | None:
  if equation.primitive.name != 'pallas_call':
    return None
  return kernels.reread_bytes(equation), True


def main(name: str = 'v5p:2x2x1') -> None:
  """Prints a Markdown table for a target."""
  target = targets.open_target(name)
  jax.set_mesh(jax.sharding.Mesh(np.array(target.devices[:1]), ('data',)))
  rows = []
  for label, shape in SHAPES.items():
    for matmul, way, run in ways():
      rows.append([label, matmul, way, *measure(run, shape, target)])
      print(rows[-1], file=sys.stderr, flush=True)
  header = ['experts', 'product', 'way', 'GFLOP', 'moved, GiB']
  print(f'{target.name}, {target.compiler}; {timing.where()}\n')
  print(markdown.table([*header, 'temporaries, MiB'], rows))


if __name__ == '__main__':
  main(*sys.argv[1:])
