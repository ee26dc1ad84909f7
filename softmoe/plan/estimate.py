"""What one config needs and takes on one target."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.costs import chips, flops
from softmoe.models import attention
from softmoe.plan import (
  collectives,
  compiling,
  flop_count,
  hlo,
  kernels,
  programs,
  roofline,
  targets,
  traffic,
)
from softmoe.process import launch
from softmoe.runs import state as state_lib


def estimate(
  config: config_lib.Config,
  target: targets.Target,
  *,
  which: tuple[str, ...] = (programs.TRAIN, programs.INFERENCE),
  cache: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Returns all that is known, JSON-ready.

  Bytes and FLOPs are of one device, but for `whole_state_bytes`: parameters and
  optimizer on all of them.

  Args:
    config: of the experiment; its data is not looked at.
    target: the devices.
    which: the programs to compile.
    cache: see `compiling.compile_program`.

  Raises:
    UserError: the config is wrong, by itself or on that many devices.
  """
  experiment = experiment_lib.build(config, target.devices)
  task, cost = experiment.task, flops.forward(config)
  report: dict[str, Any] = {
    'config': config.name,
    'target': target.name,
    'chips': target.num_chips,
    'devices': len(target.devices),
    'mesh': dict(experiment.mesh.shape),
    'compiler': target.compiler,
    'parameters': experiment.num_params(),
    'active_parameters': flops.active_params(experiment, cost),
    'group_size': experiment.group_size,
    'unit': task.unit,
    f'gflop_per_{task.unit}': cost.flops() / 1e9,
    'parameter_bytes': _bytes(experiment.abstract_params),
    'attention': _attention(config, target),
  }
  for program in which:
    training = program == programs.TRAIN
    own = flops.forward(config, training=True) if training else cost
    report[program] = _program(experiment, target, program, own, cache)
  if programs.TRAIN in which:
    report[programs.TRAIN] |= _training(
      experiment, target, report[programs.TRAIN]
    )
  return report


def _attention(config: Any, target: targets.Target) -> str | None:
  """Returns which implementation is priced; None: the model says nothing."""
  name = getattr(getattr(config, 'model', None), 'attention', None)
  return name and attention.choose(name, target.devices[0].platform)


def _program(experiment, target, program, cost, cache) -> dict[str, Any]:
  """Returns what the compiler says of a program, and what follows from it."""
  traced = programs.trace(experiment, program)
  compiled = compiling.compile_program(traced, target, cache)
  size, devices = programs.batch_size(experiment, program), len(target.devices)
  total, exact = flop_count.count(traced.jaxpr)
  passes = 3 if program == programs.TRAIN else 1
  units = size * experiment.task.units_per_example
  report = {
    'batch_size': size,
    'unit': experiment.task.unit,
    'compile_seconds': compiled.seconds,
    'memory': _memory(compiled, target),
    'flops': {
      'model': passes * cost.flops() * units / devices,
      'program': total / devices,
      'exact': exact,
      'compiler': compiled.flops,  # the body of a loop once
    },
  }
  if compiled.text:
    parsed = hlo.parse(compiled.text)
    load = functools.partial(_load, experiment, target, traced.jaxpr, units)
    report |= load(parsed)
    report['compiler_traffic'] = compiled.bytes_accessed  # likewise
    if (most := parsed.most_rounds()) > 1:
      worst = load(dataclasses.replace(parsed, worst=True))
      report['worst'] = worst | {'rounds': most}
  return report


def _memory(
  compiled: compiling.Compiled, target: targets.Target
) -> dict[str, Any]:
  limit = compiled.limit or _limit(target.chip)
  fits = bool(compiled.text) and (not limit or compiled.needed <= limit)
  return {
    'arguments': compiled.arguments,
    'outputs': compiled.outputs,
    'temporaries': compiled.temporaries,
    'code': compiled.code,
    'total': compiled.needed,
    'limit': limit,
    'fits': fits,
  }


def _limit(chip: chips.Chip | None) -> int:
  """Returns the bytes that a training may use; 0: nobody knows."""
  if chip is None:
    return 0
  return chip.memory if chip.dims else int(chip.memory * launch.GPU_SHARE)


def _load(experiment, target, jaxpr, units, program) -> dict[str, Any]:
  """Returns collectives, traffic and times of a compiled program.

  Args:
    experiment: built on the target's devices.
    target: the devices.
    jaxpr: the program before it was compiled.
    units: examples or tokens of a step.
    program: as it was compiled; it says how dropless experts are loaded.
  """
  found = collectives.find(program, len(target.devices))
  moved = traffic.by_part(program)
  moved['kernels'] = _kernel_bytes(target, jaxpr, program)
  num_bytes = sum(moved.values())
  total, _ = flop_count.count(jaxpr, worst=program.worst)
  num_flops = total / len(target.devices)
  devices = list(experiment.mesh.devices.flat)
  times = roofline.times(target, devices, num_flops, num_bytes, found)
  report = {
    'collectives': collectives.summary(found),
    'traffic': num_bytes,
    'traffic_by_part': {part: n for part, n in moved.items() if n},
    'loops': any(
      turns > 1 or not sure for _, turns, sure in program.executed()
    ),
    'open_loops': program.has_open_loops(),
  }
  if times is None or target.chip is None:
    return report
  return report | {
    'seconds': {
      'compute': times.compute,
      'memory': times.memory,
      'interconnect': times.interconnect,
      'roofline': times.roofline,
      'scheduled': roofline.scheduled(program, target.chip),
    },
    'bound': times.bound,
    f'{experiment.task.unit}s_per_second': units / times.roofline,
  }


def _kernel_bytes(target, jaxpr, program) -> int:
  """Returns the bytes that kernels move and `traffic` does not see.

  Of a kernel of a TPU it sees all operands and results, once.
  """
  chip = target.chip
  if chip is None:
    return 0

  def price(equation):
    if equation.primitive.name != 'pallas_call':
      return None
    if chip.dims:
      return kernels.reread_bytes(equation), True
    return kernels.num_bytes(equation, chip.processors), True

  total, _ = flop_count.count(jaxpr, price, worst=program.worst)
  return total // len(target.devices)


def _training(experiment, target, step) -> dict[str, Any]:
  """Returns what a training step has beside that."""
  state = state_lib.abstract(experiment)
  optimizer = state['opt_state'], state['ema']
  whole = jax.tree.leaves((state['params'], optimizer))
  result: dict[str, Any] = {
    'optimizer_bytes': _bytes(optimizer),
    'whole_state_bytes': sum(x.size * x.dtype.itemsize for x in whole),
  }
  seconds = step.get('seconds')
  if seconds:
    hours = experiment.config.steps * seconds['roofline'] / 3600
    result['chip_hours'] = hours * target.num_chips
  return result


def _bytes(tree: Any) -> int:
  """Returns the bytes of abstract arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
