"""What the formats of vision transformers share."""

from collections.abc import Collection
from typing import Any

from softmoe.errors import UserError
from softmoe.models.config import ViTConfig


def refuse(
  experiment: Any,
  *,
  activations: Collection[str],
  dense: bool = True,
  qk_norm: bool = False,
) -> None:
  """Raises a UserError for a model that no other library has.

  Args:
    experiment: the config.
    activations: those that the library has.
    dense: whether it has no MoE layers.
    qk_norm: whether it can have norms of queries and keys without a bias.
  """
  model = experiment.model
  if not isinstance(model, ViTConfig):
    raise UserError.of_field(experiment, 'task', "'classification', by a ViT")
  for field, valid, expected in (
    ('moe.blocks', not (dense and model.moe.blocks), 'none: it has no experts'),
    ('qk_norm', qk_norm or not model.qk_norm, 'False: its norms differ'),
    ('positions', model.positions == 'none', "'none'"),
    (
      'activation',
      model.activation in activations,
      f'one of {sorted(activations)}',
    ),
  ):
    if not valid:
      raise UserError.of_field(experiment, f'model.{field}', expected)


def mean_and_std(data: Any) -> dict[str, list[float]]:
  """Returns what brings values of [0, 1] into the range of our images."""
  low, high = data.value_range
  scale = 1 / (high - low)
  return {
    'mean': [-low * scale] * data.channels,
    'std': [scale] * data.channels,
  }
