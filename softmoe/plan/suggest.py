"""Changes that make a training step fit, each tried by compiling it."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from softmoe import config as config_lib
from softmoe.plan import estimate, programs, targets

_FIELDS = (
  'mesh',
  'model.remat',
  'optimizer.accumulate',
  'data.batch_size',
)


def suggest(
  config: config_lib.Config,
  target: targets.Target,
  report: dict[str, Any],
  cache: pathlib.Path | None = None,
) -> dict[str, Any] | None:
  """Returns the first change that fits, None if none does.

  Changes add up, the cheap ones first: rematerialisation, dense weights split
  over ever more devices, micro-batches; all of these compute the same. At last
  the batch is halved, which does not.

  Args:
    config: of a training step that does not fit.
    target: the devices.
    report: what `estimate.estimate` says of it.
    cache: see `compiling.compile_program`.

  Returns:
    'changes': {field: new value}, 'tried': number of programs compiled, and
    'train': the report of the training step.
  """
  devices = len(target.devices)
  limit = report['train']['memory']['limit']
  state_bytes = report['parameter_bytes'] + report['train']['optimizer_bytes']
  state_fits = state_bytes < limit
  if _least_state(report, state_bytes, devices) > limit:
    return None  # whatever the batch: nothing needs to be compiled
  candidates = _candidates(config, report, state_fits)
  for tried, candidate in enumerate(candidates, start=1):
    new = estimate.estimate(
      candidate, target, which=(programs.TRAIN,), cache=cache
    )
    if new['train']['memory']['fits']:
      changes = _changes(config, candidate)
      return {'changes': changes, 'tried': tried, 'train': new['train']}
  return None


def _least_state(
  report: dict[str, Any], state_bytes: int, devices: int
) -> float:
  """Returns the bytes of a device where all share the state alike."""
  whole = report['parameters'] * 4  # float32
  return state_bytes / report['parameter_bytes'] * whole / devices


def _candidates(
  config: config_lib.Config, report: dict[str, Any], state_fits: bool
) -> Iterator[config_lib.Config]:
  """Yields ever smaller configs; what cannot help is left out."""
  model: Any = getattr(config, 'model', None)
  if not getattr(model, 'remat', True):
    remat: Any = {'model': dataclasses.replace(model, remat=True)}
    config = dataclasses.replace(config, **remat)
    if state_fits:
      yield config
  for mesh in _meshes(report['mesh']):
    config = dataclasses.replace(config, mesh=mesh)
    yield config
  least = report['group_size'] * report['devices']  # examples of a batch
  for smaller in (_accumulated, _halved):
    while (new := smaller(config, least)) is not None:
      config = new
      yield config


def _meshes(sizes: dict[str, int]) -> Iterator[str]:
  """Yields meshes with an ever longer axis `fsdp`, taken from the others."""
  while any(sizes[axis] % 2 == 0 for axis in ('data', 'expert')):
    shorter = 'data' if sizes['data'] % 2 == 0 else 'expert'
    sizes = sizes | {shorter: sizes[shorter] // 2, 'fsdp': sizes['fsdp'] * 2}
    yield ','.join(f'{axis}:{size}' for axis, size in sizes.items())


def _accumulated(
  config: config_lib.Config, least: int
) -> config_lib.Config | None:
  parts = config.optimizer.accumulate * 2
  if config.data.batch_size % (parts * least):
    return None
  optimizer = dataclasses.replace(config.optimizer, accumulate=parts)
  return dataclasses.replace(config, optimizer=optimizer)


def _halved(config: config_lib.Config, least: int) -> config_lib.Config | None:
  parts, size = config.optimizer.accumulate, config.data.batch_size
  if parts == 1 or size % (2 * least):
    return None
  optimizer = dataclasses.replace(config.optimizer, accumulate=parts // 2)
  data = dataclasses.replace(config.data, batch_size=size // 2)
  return dataclasses.replace(config, optimizer=optimizer, data=data)


def _changes(old: config_lib.Config, new: config_lib.Config) -> dict[str, Any]:
  differences = config_lib.differences(old, new)
  return {f: differences[f][1] for f in _FIELDS if f in differences}
