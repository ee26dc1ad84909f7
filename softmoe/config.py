"""An experiment as frozen dataclasses: the single source of every default.

A config file starts from `default()`, an ml_collections `ConfigDict`, and
changes what its experiment needs. `parse` checks the result once, names any
field that is wrong, and returns the dataclasses that the rest of the package
works with. What is special to a task is in a dataclass of its own, which
extends `Config`: see `softmoe.tasks`. Every number says its range beside its
type (`softmoe.ranges`). Empty tuples, empty strings and zeros mean "off"; no
field is None, so that every field can be overridden on the command line.
"""

import dataclasses
import difflib
import functools
import importlib
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import ml_collections

from softmoe.errors import UserError
from softmoe.ranges import (
  AMOUNT,
  COUNT,
  SHARE,
  SIZE,
  STEP,
  STEP_OR_OFF,
  Range,
)

ConfigType = typing.TypeVar('ConfigType', bound='Config')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from and how they become batches; tasks add fields."""

  source: str = ''
  train_split: str = 'train'
  eval_split: str = 'test'
  batch_size: Annotated[int, SIZE] = 128  # examples, of all devices
  eval_batch_size: Annotated[int, SIZE] = 512  # examples, of all devices
  # That read and transform examples.
  threads: Annotated[int, Range(0, 1024)] = 4
  # Batches that are placed on the devices ahead of the step.
  prefetch: Annotated[int, Range(0, 1024)] = 2
  # Of the data, where the source has one: a run fills it in, and keeps to it.
  fingerprint: str = ''


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  """Learning rate over steps; every length is in steps."""

  name: str = 'rsqrt'  # 'rsqrt', 'cosine' or 'constant'
  warmup: Annotated[int, STEP_OR_OFF] = 0
  timescale: Annotated[int, STEP] = 10_000  # 'rsqrt' only
  cooldown: Annotated[int, STEP_OR_OFF] = 0  # linear to zero at the end


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer, by name, and what is decayed, by parameter path."""

  name: str = 'adamw'  # 'adam', 'adamw', 'adafactor' or 'sgd'
  learning_rate: Annotated[float, Range(0, 1000)] = 1e-3
  b1: Annotated[float, SHARE] = 0.9
  b2: Annotated[float, SHARE] = 0.999
  momentum: Annotated[float, SHARE] = 0.9  # 'sgd' only
  # (regex, rate) pairs; the first that matches a whole parameter path, without
  # `scan`, wins.
  weight_decay: tuple[tuple[str, Annotated[float, Range(0, 1000)]], ...] = ()
  # Regexes of whole paths, without `scan`, of parameters that stay as they are.
  frozen: tuple[str, ...] = ()
  # Rate of a block over that of the next, embeddings first and the head last.
  layer_decay: Annotated[float, Range(0, 1, without=0)] = 1.0
  clip_norm: Annotated[float, AMOUNT] = 0.0  # global gradient norm; 0: off
  accumulate: Annotated[int, SIZE] = 1  # micro-batches a step
  schedule: ScheduleConfig = ScheduleConfig()


@dataclasses.dataclass(frozen=True)
class UpcycleConfig:
  """MoE layers out of the MLPs of `init`; see docs/finetuning.md."""

  enabled: bool = False
  # Of each kernel of an expert, times the kernel's standard deviation.
  noise: Annotated[float, AMOUNT] = 0.0
  # Of the experts' outputs: 1 over what the gates of a token sum to.
  scale: Annotated[float, Range(0, 1e6, without=0)] = 1.0


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is kept in `workdir/checkpoints`; 0 turns a rule off."""

  # Steps between saves; the last step is always saved.
  every: Annotated[int, STEP_OR_OFF] = 1000
  keep_last: Annotated[int, SIZE] = 2  # at least 1, so that a run can go on
  # Also keep every step that is divisible by this.
  keep_every: Annotated[int, STEP_OR_OFF] = 0
  # Also keep this many with the best metric.
  keep_best: Annotated[int, COUNT] = 1
  best_metric: str = 'accuracy'  # a name with 'loss' in it: lowest is best


@dataclasses.dataclass(frozen=True)
class Config:
  """What every experiment has; the dataclass of a task adds what it needs."""

  name: str = 'experiment'
  task: str = 'classification'  # or 'my_module:MyTask'
  seed: Annotated[int, Range(0, 2**32 - 1)] = 0  # JAX reads 32 bits
  steps: Annotated[int, STEP] = 1000
  # What it starts from: 'WORKDIR[@STEP]' of a run, or a weights file; see
  # docs/weights.md.
  init: str = ''
  init_head: str = 'keep'  # or 'reset': as in a run without `init`
  init_allow: str = ''  # regex of names that one side has and the other lacks
  init_moments: bool = False  # go on with what its optimizer remembers
  upcycle: UpcycleConfig = UpcycleConfig()
  # Decay of the weight average that is evaluated; 0: off.
  ema: Annotated[float, SHARE] = 0.0
  mesh: str = ''  # sizes of 'data', 'fsdp' and 'expert'; empty: see `build`
  log_every: Annotated[int, STEP] = 50
  eval_every: Annotated[int, STEP_OR_OFF] = 0  # steps; 0: at the end only
  # First and last step of a trace, written to `workdir/profile`; empty: none.
  profile: tuple[Annotated[int, STEP], ...] = ()
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
    UserError: a key is unknown, or a value has the wrong type or is out of its
      range.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  parsed = _parse(cls, config, '')
  check(parsed)
  return parsed


def check(config: Any, path: str = 'config') -> None:
  """Raises a UserError that names the first number out of its range.

  Args:
    config: `Config`, or the dataclass of one of its branches.
    path: of that branch, such as 'config.data'.
  """
  for field, value, hint in numbers(config, type(config), path):
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(field, value, 'a finite number')
    for allowed in getattr(hint, '__metadata__', ()):
      if value not in allowed:
        raise UserError(field, value, str(allowed))


def numbers(
  value: Any, hint: Any, path: str
) -> Iterator[tuple[str, int | float, Any]]:
  """Yields path, value and type hint of every number in a config's field."""
  if dataclasses.is_dataclass(value):
    for name, inner in hints(type(value)).items():
      yield from numbers(getattr(value, name), inner, f'{path}.{name}')
  elif isinstance(value, (tuple, list)):
    inner = _of_items(hint, value)
    for i, (item, each) in enumerate(zip(value, inner, strict=True)):
      yield from numbers(item, each, f'{path}[{i}]')
  elif isinstance(value, int | float) and not isinstance(value, bool):
    yield path, value, hint


@functools.cache
def hints(cls: type) -> dict[str, Any]:
  """Returns the types of a dataclass's fields, ranges of numbers with them."""
  return typing.get_type_hints(cls, include_extras=True)


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
  """Returns the fields that differ, as dotted path -> (old, new) value.

  A field that the other's task does not have is None there.
  """
  a, b = flatten(to_dict(old)), flatten(to_dict(new))
  return {k: (a.get(k), b.get(k)) for k in a | b if a.get(k) != b.get(k)}


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
  known = hints(cls)
  for key in values:
    if key not in known:
      raise UserError(
        f'config.{prefix}{key}', values[key], _suggest(key, known)
      )
  return cls(
    **{k: _convert(known[k], v, prefix + k) for k, v in values.items()}
  )


def _suggest(key: str, known: dict[str, Any]) -> str:
  close = difflib.get_close_matches(key, known, n=1)
  hint = f'did you mean {close[0]!r}?' if close else f'one of {sorted(known)}'
  return f'no such field; {hint}'


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Returns `value` as the type `hint`, or raises naming the field."""
  plain = _plain(hint)
  if dataclasses.is_dataclass(plain) and isinstance(value, dict):
    return _parse(typing.cast(type, plain), value, path + '.')
  if typing.get_origin(plain) is tuple and isinstance(value, (tuple, list)):
    return _convert_tuple(plain, value, path)
  if plain is float and type(value) is int:
    return _float(value, path)
  if plain is Any or type(value) is plain:
    return value
  raise UserError(f'config.{path}', value, f'a value of type {_name(hint)}')


def _convert_tuple(hint: Any, value: tuple | list, path: str) -> tuple:
  inner = _of_items(hint, value)
  if len(inner) != len(value):
    raise UserError(f'config.{path}', value, f'{len(inner)} values')
  return tuple(
    _convert(each, item, f'{path}[{i}]')
    for i, (each, item) in enumerate(zip(inner, value, strict=True))
  )


def _float(value: int, path: str) -> float:
  try:
    return float(value)
  except OverflowError as e:
    raise UserError(f'config.{path}', value, 'a smaller number') from e


def _of_items(hint: Any, value: tuple | list) -> list[Any]:
  """Returns the type of each item of a tuple."""
  args = typing.get_args(hint) or (Any, ...)
  return [args[0]] * len(value) if args[-1] is Ellipsis else list(args)


def _plain(hint: Any) -> Any:
  """Returns a type without the range that is written beside it."""
  return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def _name(hint: Any) -> str:
  hint = _plain(hint)
  if typing.get_origin(hint) is not tuple:
    return '...' if hint is Ellipsis else hint.__name__
  return f'tuple[{", ".join(map(_name, typing.get_args(hint)))}]'
