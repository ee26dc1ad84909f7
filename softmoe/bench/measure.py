"""Times layers beside dense MLPs, and what they could take at least."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from softmoe.bench import cases, machine
from softmoe.models import mixtures
from softmoe.process import interleaved

DENSE = 'Dense'
PASSES = ('forward', 'step')  # a step is forward and backward


@dataclasses.dataclass(frozen=True)
class Row:
  """One pass of one layer.

  Attributes:
    layer: its name.
    kind: one of PASSES.
    executed: experts of a token, on average; None of the dense MLP.
    seconds: the median over the rounds.
    spread: of the middle half of the rounds, as a share of the median.
    floor: seconds of its matmuls, or of reading its weights, at the machine's
      measured rates, whichever is longer.
    of_tokens: the time as a multiple of the dense MLP's on the same tokens.
    of_flops: the same of a dense MLP that computes as much; None of the dense.
    temporaries: bytes that the compiler sets aside.
    compiling: seconds.
  """

  layer: str
  kind: str
  executed: float | None
  seconds: float
  spread: float
  floor: float
  of_tokens: float
  of_flops: float | None
  temporaries: int
  compiling: float


@dataclasses.dataclass
class _Layer:
  """A layer with its programs; `equal` computes as much as a dense MLP."""

  units: float
  executed: float | None
  weights: int
  programs: dict[str, 'Program']
  equal: dict[str, 'Program']


class Program:
  """A compiled function with its arguments."""

  def __init__(self, function: Callable[..., Any], *arguments: Any):
    start = time.perf_counter()
    self._compiled = jax.jit(function).lower(*arguments).compile()
    self.compiling = time.perf_counter() - start
    self._arguments = arguments
    memory = self._compiled.memory_analysis()
    self.temporaries = getattr(memory, 'temp_size_in_bytes', 0)

  def __call__(self) -> Any:
    return self._compiled(*self._arguments)


def measure(
  size: cases.Size,
  layers: Sequence[str],
  *,
  dtype: str,
  rates: machine.Rates,
  rounds: int,
) -> list[Row]:
  """Returns rows of the dense MLP and of each layer, timed in turn.

  Args:
    size: of what they work on.
    layers: names of `cases.LAYERS`.
    dtype: of tokens and computation.
    rates: of the machine, for this type.
    rounds: of the timing.
  """
  shape = (size.examples, size.tokens, size.width)
  x = jax.random.normal(jax.random.key(0), shape, dtype)
  built = {DENSE: _dense(size, dtype, x)}
  built |= {name: _mixture(name, size, dtype, x) for name in layers}
  programs = {
    (name, kind, which): program
    for name, layer in built.items()
    for which in ('programs', 'equal')
    for kind, program in getattr(layer, which).items()
  }
  times = interleaved.seconds(programs, rounds)
  middle = {key: statistics.median(values) for key, values in times.items()}

  def row(name: str, kind: str) -> Row:
    layer, seconds = built[name], middle[name, kind, 'programs']
    equal = middle.get((name, kind, 'equal'))
    low, high = np.quantile(times[name, kind, 'programs'], [0.25, 0.75])
    times_forward = 1 if kind == 'forward' else 3
    flops = 4 * size.examples * size.tokens * size.width * layer.units
    moved = float(layer.weights + 2 * x.nbytes)
    return Row(
      layer=name,
      kind=kind,
      executed=layer.executed,
      seconds=seconds,
      spread=float(high - low) / seconds,
      floor=rates.floor(times_forward * flops, times_forward * moved),
      of_tokens=seconds / middle[DENSE, kind, 'programs'],
      of_flops=seconds / equal if equal else None,
      temporaries=layer.programs[kind].temporaries,
      compiling=layer.programs[kind].compiling,
    )

  return [row(name, kind) for name in built for kind in PASSES]


def _dense(size: cases.Size, dtype: str, x: jax.Array) -> _Layer:
  mlp = _mlp(size, size.mlp_dim, dtype)
  units = float(size.mlp_dim)
  return _Layer(units, None, _weights(mlp), programs(mlp, x), {})


def _mixture(name: str, size: cases.Size, dtype: str, x: jax.Array) -> _Layer:
  config = cases.config(name, size, dtype)
  layer = mixtures.make_moe(config, nnx.Rngs(0))
  graphdef, params = nnx.split(layer)
  call = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x)[1])
  executed = float(call(params, x)['metrics']['executed'])
  units = executed * (config.moe.expert_dim or size.mlp_dim)
  equal = programs(_mlp(size, max(round(units), 1), dtype), x)
  return _Layer(units, executed, _weights(layer), programs(layer, x), equal)


def _mlp(size: cases.Size, mlp_dim: int, dtype: str) -> nnx.Module:
  config = cases.config('Soft MoE', size, dtype)
  return mixtures.make_mlp(config, mlp_dim, nnx.Rngs(0))


def _weights(module: nnx.Module) -> int:
  return sum(v.nbytes for v in jax.tree.leaves(nnx.state(module, nnx.Param)))


def programs(module: nnx.Module, x: jax.Array) -> dict[str, Program]:
  """Returns the forward pass, and the gradients of weights and tokens."""
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)

  def forward(params: Any, x: jax.Array) -> jax.Array:
    y = nnx.merge(graphdef, params, rest)(x)
    return y[0] if isinstance(y, tuple) else y

  def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(forward(params, x).astype(jnp.float32)))

  step = jax.grad(loss, argnums=(0, 1))
  functions = dict(zip(PASSES, (forward, step), strict=True))
  return {kind: Program(f, params, x) for kind, f in functions.items()}
