"""An experiment as frozen dataclasses: the single source of every default.

A config file starts from `default()`, an ml_collections `ConfigDict`, and
changes what its experiment needs. `parse` checks the result once, names any
field that is wrong, and returns the dataclasses that the rest of the package
works with. Empty tuples, empty strings and zeros mean "off"; no field is None,
so that every field can be overridden on the command line.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any

import ml_collections

from softmoe.errors import UserError


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Which blocks are mixtures of experts, and how they route.

  A router reads the fields that it knows; `softmoe.models.mixtures` says which.
  """

  router: str = 'soft'
  blocks: tuple[int, ...] = ()  # indices of the MoE blocks; empty: a plain ViT
  num_experts: int = 1
  expert_dim: int = 0  # hidden width of an expert; 0: mlp_dim
  expert_init: str = 'independent'  # or 'identical'
  shared_dim: int = 0  # hidden width of an MLP for every token; 0: none
  group_size: int = 1  # examples whose tokens are routed together
  exchange_chunks: int = 1  # parts in which slots travel; not for dropless
  slots_per_expert: int = 1  # soft routers
  k: int = 1  # experts of a token
  capacity_factor: float = 0.0  # 0: nothing is dropped
  eval_capacity_factor: float = 0.0  # 0: as in training
  batch_priority: bool = False
  normalize: bool = False  # the gates of a token's experts sum to 1
  num_null: int = 0  # experts that return 0
  noise_std: float = 0.0  # of the logits in training, times the experts
  softmax_over: str = 'experts'  # or 'tokens'; 'experts_choice' only
  threshold: float = 0.9
  temperature: float = 1.0
  losses: tuple[tuple[str, float], ...] = ()  # (name, coefficient) pairs
  balance: float = 0.01  # coefficient of the loss of 'threshold'
  rate: float = 1e-3  # by how much 'bias_balanced' moves its bias in a step


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A vision transformer; `softmoe.models.vit.variant('S/16')` fills sizes."""

  patch_size: tuple[int, int] = (16, 16)
  width: int = 384
  depth: int = 12
  mlp_dim: int = 1536
  num_heads: int = 6
  pool: str = 'gap'  # 'gap', 'token' or 'map'
  representation_size: int = 0  # width of the tanh pre-logits layer; 0: none
  qk_norm: bool = False
  dropout: float = 0.0
  drop_path: float = 0.0  # rate of the last block; grows linearly with depth
  dtype: str = 'float32'  # of the computation
  param_dtype: str = 'float32'
  remat: bool = False  # compute blocks again in the backward pass
  scan: bool = False  # one compiled body for each run of equal blocks
  moe: MoEConfig = MoEConfig()


@dataclasses.dataclass(frozen=True)
class TransformConfig:
  """What happens to one image between its source and the batch."""

  resize: int = 0  # shorter side in pixels, before the crop; 0: off
  crop: str = 'none'  # 'none', 'central', 'inception' or 'pad'
  min_area: float = 0.05  # inception crop: smallest share of the image
  padding: int = 4  # 'pad': pixels of reflection before a random crop
  flip: bool = False
  randaugment_layers: int = 0
  randaugment_magnitude: int = 10


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where images come from and how they become batches."""

  source: str = 'digits'
  train_split: str = 'train'
  eval_split: str = 'test'
  num_classes: int = 10
  image_size: tuple[int, int] = (8, 8)  # height, width in pixels
  channels: int = 1
  batch_size: int = 128  # global
  eval_batch_size: int = 512  # global
  value_range: tuple[float, float] = (-1.0, 1.0)
  train: TransformConfig = TransformConfig()
  eval: TransformConfig = TransformConfig()
  threads: int = 4  # that read and transform examples
  prefetch: int = 2  # batches placed on the devices ahead of the step


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
  """A whole experiment."""

  name: str = 'experiment'
  seed: int = 0
  steps: int = 1000
  loss: str = 'softmax'  # or 'sigmoid'
  label_smoothing: float = 0.0
  mixup: float = 0.0  # alpha of the beta distribution; 0: off
  ema: float = 0.0  # decay of the weight average that is evaluated; 0: off
  mesh: str = 'data:-1'  # sizes by axis: 'data', 'fsdp' and 'expert'
  log_every: int = 50
  eval_every: int = 0  # steps; 0: at the end only
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()


def default() -> ml_collections.ConfigDict:
  """Returns every field with its default, ready for a config file to change."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def check_argument(argument: str, known: tuple[str, ...]) -> None:
  """Raises a UserError if a config file does not know its argument."""
  if argument not in known:
    raise UserError('--config=FILE:ARGUMENT', argument, f'one of {list(known)}')


def parse(config: ml_collections.ConfigDict | dict) -> Config:
  """Returns the checked, frozen form of a config.

  Raises:
    UserError: a key is unknown or a value has the wrong type.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return _parse(Config, config, '')


def to_dict(config: Config) -> dict[str, Any]:
  """Returns the plain, JSON-ready form of a config; `parse` inverts it."""
  return dataclasses.asdict(config)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """Returns the fields that differ, as dotted path -> (old, new) value."""
  a, b = _flatten(to_dict(old)), _flatten(to_dict(new))
  return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    path = f'{prefix}{key}'
    flat |= (
      _flatten(value, path + '.') if isinstance(value, dict) else {path: value}
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
  if type(value) is hint:
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
