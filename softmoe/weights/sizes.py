"""The model that a file is of, told from its names and shapes alone."""

import dataclasses
import itertools
import math
from typing import Any

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.models.config import DecoderConfig, MoEConfig, ViTConfig
from softmoe.tasks import classification, language
from softmoe.weights.arrays import File
from softmoe.weights.formats import gpt2, own
from softmoe.weights.formats.format import Format
from softmoe.weights.row import Row

_HEAD = 64  # width of a head, where nothing tells


def config_of(
  file: File, form: Format, num_heads: int | None = None
) -> config_lib.Config:
  """Returns a config whose model has the file's parameters.

  Args:
    file: the file.
    form: its format.
    num_heads: of attention; None: what the file tells, or else heads of 64.

  Raises:
    UserError: the file lacks what every model has, or ours its config.
  """
  if form is own.FORMAT:
    if not file.config:
      expected = 'a file of ours with its config.json beside it'
      raise UserError('weights', str(file.path), expected)
    return experiment_lib.parse(file.config)
  told = form.trained | form.facts(file.config)
  heads = num_heads or told.get('num_heads') or _heads(file)
  rows = _rows(file, form, heads or 1)
  width = _shape(file, rows, 'norm/scale')[0]
  fields = told | {
    'width': width,
    'depth': _depth(rows),
    'mlp_dim': _mlp_dim(file, rows),
    'num_heads': heads or max(width // _HEAD, 1),
    'qk_norm': 'blocks/0/attention/query_norm/scale' in rows,
  }
  if form is gpt2.FORMAT:
    return _language(file, rows, fields)
  return _classification(file, rows, fields)


def _language(
  file: File, rows: dict[str, Row], fields: dict[str, Any]
) -> language.Config:
  model = DecoderConfig(
    **fields,
    vocab_size=_shape(file, rows, 'vocabulary/embedding')[0],
    tied='vocabulary/head' not in rows,
  )
  config = language.Config(model=model)
  length = _shape(file, rows, 'positions/table')[0]
  data = dataclasses.replace(config.data, length=length)
  return dataclasses.replace(config, data=data)


def _classification(
  file: File, rows: dict[str, Row], fields: dict[str, Any]
) -> classification.Config:
  kernel = _shape(file, rows, 'patches/kernel')
  pool = 'token' if 'patches/class_token' in rows else 'gap'
  pool = 'map' if 'map_head/probe' in rows else pool
  size = 0
  if 'pre_logits/bias' in rows:
    size = _shape(file, rows, 'pre_logits/bias')[0]
  model = ViTConfig(
    **fields,
    patch_size=(kernel[0], kernel[1]),
    pool=pool,
    representation_size=size,
    moe=_moe(file, rows),
  )
  config = classification.Config(model=model)
  count = _shape(file, rows, 'patches/position')[1] - (pool == 'token')
  side = math.isqrt(count)
  data = dataclasses.replace(
    config.data,
    image_size=(side * kernel[0], side * kernel[1]),
    channels=kernel[2],
  )
  if 'head/bias' in rows:
    classes = _shape(file, rows, 'head/bias')[0]
    data = dataclasses.replace(data, num_classes=classes)
  return dataclasses.replace(config, data=data)


def _moe(file: File, rows: dict[str, Row]) -> MoEConfig:
  path = 'blocks/{}/mlp/experts/stacked/up/bias'
  blocks = tuple(i for i in range(_depth(rows)) if path.format(i) in rows)
  if not blocks:
    return MoEConfig()
  num_experts, expert_dim = _shape(file, rows, path.format(blocks[0]))
  phi = f'blocks/{blocks[0]}/mlp/router/phi'
  soft = phi in rows
  return MoEConfig(
    router='soft' if soft else 'tokens_choice',
    blocks=blocks,
    num_experts=num_experts,
    expert_dim=expert_dim,
    slots_per_expert=_shape(file, rows, phi)[-1] if soft else 1,
  )


def _heads(file: File) -> int | None:
  """Returns the heads of an array that has an axis of them."""
  kernels = (a for n, a in file.arrays.items() if n.endswith('/query/kernel'))
  return next((a.shape[1] for a in kernels if a.ndim == 3), None)


def _rows(file: File, form: Format, heads: int) -> dict[str, Row]:
  """Returns the rows of all arrays that are there."""
  for depth in itertools.count(1):
    table = form.rows(ViTConfig(depth=depth, num_heads=heads), file.arrays)
    rows = {row.path: row for row in table if row.name in file.arrays}
    if _depth(rows) < depth:
      return rows
  raise AssertionError


def _depth(rows: dict[str, Row]) -> int:
  path = 'blocks/{}/attention_norm/scale'
  return next(i for i in itertools.count() if path.format(i) not in rows)


def _mlp_dim(file: File, rows: dict[str, Row]) -> int:
  """Returns the width of the first block that is dense, or of the experts."""
  ends = ('/mlp/up/bias', '/mlp/experts/stacked/up/bias')
  for end in ends:
    for path in rows:
      if path.startswith('blocks/') and path.endswith(end):
        return _shape(file, rows, path)[-1]
  raise UserError('weights', str(file.path), 'a file with MLPs')


def _shape(file: File, rows: dict[str, Row], path: str) -> tuple[int, ...]:
  view = rows[path].view(file.arrays[rows[path].name]) if path in rows else None
  if view is None:
    raise UserError('weights', str(file.path), f'a file with {path}')
  return view.shape
