"""Changes that make a training step fit, each tried by compiling it."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from softmoe import config as config_lib
from softmoe.plan import estimate, programs, targets
from softmoe.tasks import registry

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
  the batch is made smaller, which does not: that of a micro-batch, or, where a
  loss is no sum over the examples, halved again and again.

  Args:
    config: of a training step that does not fit.
    target: the devices.
    report: what `estimate.estimate` says of it.
    cache: see `compiling.compile_program`.

  Returns:
    'changes': {field: new value}, 'tried': number of programs compiled, and
    'train': the report of the training step.
  """
  limit = report['train']['memory']['limit']
  state_bytes = report['parameter_bytes'] + report['train']['optimizer_bytes']
  state_fits = state_bytes < limit
  if report['train']['whole_state_bytes'] / len(target.devices) > limit:
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
  additive = registry.find(config.task).additive
  yield from (_in_parts if additive else _halved)(config, least)


def _meshes(sizes: dict[str, int]) -> Iterator[str]:
  """Yields meshes with an ever longer axis `fsdp`, taken from the others."""
  while any(sizes[axis] % 2 == 0 for axis in ('data', 'expert')):
    shorter = 'data' if sizes['data'] % 2 == 0 else 'expert'
    sizes = sizes | {shorter: sizes[shorter] // 2, 'fsdp': sizes['fsdp'] * 2}
    yield ','.join(f'{axis}:{size}' for axis, size in sizes.items())


def _in_parts(
  config: config_lib.Config, least: int
) -> Iterator[config_lib.Config]:
  """Yields ever smaller micro-batches, at last one of them as the batch."""
  parts, size = config.optimizer.accumulate, config.data.batch_size
  while size % (2 * parts * least) == 0:
    parts *= 2
    yield _sized(config, parts, size)
  if parts > 1:
    yield _sized(config, 1, size // parts)


def _halved(
  config: config_lib.Config, least: int
) -> Iterator[config_lib.Config]:
  """Yields ever smaller batches."""
  size = config.data.batch_size
  while size % (2 * least) == 0:
    size //= 2
    yield _sized(config, 1, size)


def _sized(
  config: config_lib.Config, parts: int, size: int
) -> config_lib.Config:
  optimizer = dataclasses.replace(config.optimizer, accumulate=parts)
  data = dataclasses.replace(config.data, batch_size=size)
  return dataclasses.replace(config, optimizer=optimizer, data=data)


def _changes(old: config_lib.Config, new: config_lib.Config) -> dict[str, Any]:
  differences = config_lib.differences(old, new)
  return {f: differences[f][1] for f in _FIELDS if f in differences}
