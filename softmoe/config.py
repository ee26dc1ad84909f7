"""An experiment as frozen dataclasses: the single source of every default.

A config file starts from `default()`, an ml_collections `ConfigDict`, and
changes what its experiment needs. `parse` checks the result once, names any
field that is wrong, and returns the dataclasses that the rest of the package
works with. What is special to a task is in a dataclass of its own, which
extends `Config`: see `softmoe.tasks`. Empty tuples, empty strings and zeros
mean "off"; no field is None, so that every field can be overridden on the
command line.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from typing import Any

import ml_collections

from softmoe.errors import UserError

ConfigType = typing.TypeVar('ConfigType', bound='Config')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from and how they become batches; tasks add fields."""

  source: str = ''
  train_split: str = 'train'
  eval_split: str = 'test'
  batch_size: int = 128  # examples, of all devices
  eval_batch_size: int = 512  # examples, of all devices
  threads: int = 4  # that read and transform examples
  prefetch: int = 2  # batches placed on the devices ahead of the step
  # Of the data, where the source has one: a run fills it in, and keeps to it.
  fingerprint: str = ''


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  """Learning rate over steps; every length is in steps."""

  name: str = 'rsqrt'  # 'rsqrt', 'cosine' or 'constant'
  warmup: int = 0
  timescale: int = 10_000  # 'rsqrt' only
  cooldown: int = 0  # linear to zero at the end


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer, by name, and what is decayed, by parameter path."""

  name: str = 'adamw'  # 'adam', 'adamw', 'adafactor' or 'sgd'
  learning_rate: float = 1e-3
  b1: float = 0.9
  b2: float = 0.999
  momentum: float = 0.9  # 'sgd' only
  # (regex, rate) pairs; the first that matches a whole parameter path wins.
  weight_decay: tuple[tuple[str, float], ...] = ()
  clip_norm: float = 0.0  # global gradient norm; 0: off
  accumulate: int = 1  # micro-batches a step
  schedule: ScheduleConfig = ScheduleConfig()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is kept in `workdir/checkpoints`; 0 turns a rule off."""

  every: int = 1000  # steps between saves; the last step is always saved
  keep_last: int = 2  # at least 1, so that a run can go on
  keep_every: int = 0  # also keep every step divisible by this
  keep_best: int = 1  # also keep this many with the best metric
  best_metric: str = 'accuracy'  # a name with 'loss' in it: lowest is best


@dataclasses.dataclass(frozen=True)
class Config:
  """What every experiment has; the dataclass of a task adds what it needs."""

  name: str = 'experiment'
  task: str = 'classification'  # or 'my_module:MyTask'
  seed: int = 0
  steps: int = 1000
  # What it starts from: 'WORKDIR[@STEP]' of a run, or a weights file; see
  # docs/weights.md.
  init: str = ''
  init_head: str = 'keep'  # or 'reset': as in a run without `init`
  init_allow: str = ''  # regex of names that one side has and the other lacks
  ema: float = 0.0  # decay of the weight average that is evaluated; 0: off
  mesh: str = ''  # sizes of 'data', 'fsdp' and 'expert'; empty: see `build`
  log_every: int = 50
  eval_every: int = 0  # steps; 0: at the end only
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()


def default(cls: type[Config]) -> ml_collections.ConfigDict:
  """Returns every field with its default, ready for a config file to change."""
  return ml_collections.ConfigDict(dataclasses.asdict(cls()))


def check_argument(argument: str, known: tuple[str, ...]) -> None:
  """Raises a UserError if a config file does not know its argument."""
  if argument not in known:
    raise UserError('--config=FILE:ARGUMENT', argument, f'one of {list(known)}')


def parse(
  config: ml_collections.ConfigDict | dict, cls: type[ConfigType]
) -> ConfigType:
  """Returns the checked, frozen form of a config, an instance of `cls`.

  Raises:
    UserError: a key is unknown or a value has the wrong type.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return _parse(cls, config, '')


def load(field: str, name: str) -> Any:
  """Returns the object that 'module:Name' names, such as a user's own router.

  Modules are looked for where Python does, and in the current folder.

  Args:
    field: of the config, for the error.
    name: 'module:Name'; the module may have dots.

  Raises:
    UserError: there is no such module, or nothing of that name in it.
  """
  module, _, attribute = name.partition(':')
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as e:
    expected = f"'module:Name' that can be imported ({e})"
    raise UserError(f'config.{field}', name, expected) from e


def to_dict(config: Config) -> dict[str, Any]:
  """Returns the plain, JSON-ready form of a config; `parse` inverts it."""
  return dataclasses.asdict(config)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """Returns the fields that differ, as dotted path -> (old, new) value."""
  a, b = flatten(to_dict(old)), flatten(to_dict(new))
  return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the fields of a config, from `to_dict`, by their dotted paths."""
  flat = {}
  for key, value in tree.items():
    path = f'{prefix}{key}'
    flat |= (
      flatten(value, path + '.') if isinstance(value, dict) else {path: value}
    )
  return flat


def _parse(cls: type, values: dict[str, Any], prefix: str) -> Any:
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise UserError(
        f'config.{prefix}{key}', values[key], _suggest(key, hints)
      )
  return cls(
    **{k: _convert(hints[k], v, prefix + k) for k, v in values.items()}
  )


def _suggest(key: str, known: dict[str, Any]) -> str:
  close = difflib.get_close_matches(key, known, n=1)
  hint = f'did you mean {close[0]!r}?' if close else f'one of {sorted(known)}'
  return f'no such field; {hint}'


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Returns `value` as the type `hint`, or raises naming the field."""
  if dataclasses.is_dataclass(hint) and isinstance(value, dict):
    return _parse(typing.cast(type, hint), value, path + '.')
  if typing.get_origin(hint) is tuple and isinstance(value, (tuple, list)):
    return _convert_tuple(typing.get_args(hint), value, path)
  if hint is float and type(value) is int:
    return float(value)
  if hint is Any or type(value) is hint:
    return value
  raise UserError(f'config.{path}', value, f'a value of type {_name(hint)}')


def _convert_tuple(args: tuple, value: tuple | list, path: str) -> tuple:
  hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
  if len(hints) != len(value):
    raise UserError(f'config.{path}', value, f'{len(hints)} values')
  return tuple(
    _convert(hint, item, f'{path}[{i}]')
    for i, (hint, item) in enumerate(zip(hints, value, strict=True))
  )


def _name(hint: Any) -> str:
  return str(hint) if isinstance(hint, types.GenericAlias) else hint.__name__
