"""What `python -m softmoe.weights` does; each returns the lines to print."""

import dataclasses
import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from softmoe import config as config_lib
from softmoe.errors import UserError, naming
from softmoe.models.config import TransformerConfig
from softmoe.runs import load
from softmoe.runs import workdir as workdir_lib
from softmoe.tasks import registry as tasks
from softmoe.weights import arrays, fit, hub, save, sizes, source
from softmoe.weights import card as card_lib
from softmoe.weights.formats import registry
from softmoe.weights.formats.format import Format

_RUN = 'WORKDIR[@STEP]'  # as the command line has it
_FIELDS = (
  'model.width',
  'model.depth',
  'model.mlp_dim',
  'model.num_heads',
  'model.activation',
  'model.norm_epsilon',
)


def inspect(file: str, heads: int | None) -> list[str]:
  """Returns the format of a file, its model as flags, and its arrays."""
  opened = arrays.open_file(hub.locate(file))
  form = registry.detect(opened.arrays)
  config = sizes.config_of(opened, form, heads)
  flat = config_lib.flatten(config_lib.to_dict(config))
  default = config_lib.flatten(config_lib.to_dict(type(config)()))
  shown = [
    f'--config.{field}={_flag(value)}'
    for field, value in flat.items()
    if field in _FIELDS or value != default[field]
  ]
  total = sum(array.size for array in opened.arrays.values())
  return [
    f'{file}: {len(opened.arrays)} arrays of {form.name}, {total:,} numbers',
    *shown,
    *(f'{n} {a.dtype} {a.shape}' for n, a in sorted(opened.arrays.items())),
  ]


def convert(
  file: str, out: str, to: str, push: str, heads: int | None
) -> list[str]:
  """Writes a file in another format, as a folder."""
  opened = arrays.open_file(hub.locate(file))
  theirs = registry.detect(opened.arrays)
  form = _writable(pathlib.Path(out), to, push)
  config: Any = sizes.config_of(opened, theirs, heads)
  form.refuse(config)
  table = theirs.rows(config.model, opened.arrays)
  found = fit.fit(opened, theirs, config.model, {row.path for row in table})
  fit.check('FILE', opened, theirs, (), found.left_over)
  config = _with_classes(config, file, form, found.rows)
  params = {
    path: row.read(opened.arrays, (slice(None),) * len(found.shapes[path]))
    for path, row in found.rows.items()
  }
  return _write(pathlib.Path(out), form, config, params, file, {}, push)


def _with_classes(
  config: Any, file: str, form: Format, paths: Collection[str]
) -> Any:
  """Returns the config of a file's model, without classes if it has no head.

  Raises:
    UserError: it has none, and every model of the format has one.
  """
  head = tasks.find(config.task).head
  if not head or f'{head}/kernel' in paths:
    return config
  if not form.headless:
    expected = f'a file with {head}/kernel, a head: {form.name} wants one'
    raise UserError('FILE', file, expected)
  data = dataclasses.replace(config.data, num_classes=0)
  return dataclasses.replace(config, data=data)


def export(run: str, out: str, to: str, push: str) -> list[str]:
  """Writes the parameters that a run evaluates, as a folder."""
  form = _writable(pathlib.Path(out), to, push)
  workdir, step = source.split(run)
  with naming({'--workdir': _RUN, '--step': _RUN}):
    with workdir_lib.find_checkpoint(workdir, step) as found:
      task = tasks.find(found.config.task)(found.config)
      form.refuse(task.config)
    experiment, number, tree = load.restore(workdir, step)
  leaves = traverse_util.flatten_dict(experiment.task.exchange(tree))
  params = {
    '/'.join(map(str, path)): np.asarray(jax.device_get(leaf))
    for path, leaf in leaves.items()
  }
  result = workdir_lib.read_result(pathlib.Path(workdir).expanduser()) or {}
  config, params = _without_lora(experiment.task.config, params)
  where = f'step {number} of {config.name}'
  return _write(pathlib.Path(out), form, config, params, where, result, push)


def _without_lora(
  config: Any, params: dict[str, np.ndarray]
) -> tuple[Any, dict[str, np.ndarray]]:
  """Returns config and parameters of the same model, A B in its kernels."""
  found = [p.removesuffix('lora_a') for p in params if p.endswith('/lora_a')]
  if not found:
    return config, params
  product = lambda p: params[f'{p}lora_a'] @ params[f'{p}lora_b']
  sums = {f'{p}kernel': params[f'{p}kernel'] + product(p) for p in found}
  others = {path: w for path, w in params.items() if '/lora_' not in path}
  whole = {
    field.name: _whole(getattr(config, field.name))
    for field in dataclasses.fields(config)
  }
  return dataclasses.replace(config, **whole), others | sums


def _whole(part: Any) -> Any:
  """Returns a part of a config, of a model without low-rank parts if it is."""
  if not isinstance(part, TransformerConfig):
    return part
  moe = dataclasses.replace(part.moe, lora_rank=0)
  return dataclasses.replace(part, moe=moe)


def _writable(out: pathlib.Path, to: str, push: str) -> Format:
  """Returns the format, after what can be checked before any work."""
  form = registry.find('--to', to)
  save.check_new(out)
  if push:
    hub.library('--push', push)
  return form


def _write(
  out: pathlib.Path,
  form: Format,
  config: Any,
  params: Mapping[str, np.ndarray],
  where: str,
  result: Mapping[str, Any],
  push: str,
) -> list[str]:
  named = save.arrays(form, config.model, params)
  count = sum(math.prod(x.shape) for x in params.values())
  text = card_lib.card(form, config, where, count, result)
  save.write_folder(out, form, named, form.config(config), text)
  lines = [f'{out}: {len(named)} arrays of {form.name}, {count:,} parameters']
  return [*lines, hub.push(out, push)] if push else lines


def _flag(value: Any) -> str:
  if not isinstance(value, (tuple, list)):
    return str(value)
  return f'"{tuple(value)}"' if value else '"()"'
