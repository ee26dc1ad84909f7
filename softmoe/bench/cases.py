"""Which layers are timed, at which sizes."""

import dataclasses
from typing import Any

from softmoe.models import config as config_lib


@dataclasses.dataclass(frozen=True)
class Size:
  """What a layer works on, and the MLP that it stands in for.

  Attributes:
    examples: of a batch.
    tokens: of an example.
    width: of a token.
    mlp_dim: hidden units of the MLP.
  """

  examples: int
  tokens: int
  width: int
  mlp_dim: int


# Images of 224 pixels in patches of 16, and a language model.
SIZES = {
  'S/16': Size(8, 196, 384, 1536),
  'B/16': Size(8, 196, 768, 3072),
  'L/16': Size(8, 196, 1024, 4096),
  'text': Size(2, 1024, 512, 2048),
}
# Experts like the MLP, or eight times as many of an eighth of its width.
LARGE = dict(num_experts=32)
SMALL = dict(num_experts=64)
_CHOICE = dict(capacity_factor=1.0)
LAYERS: dict[str, dict[str, Any]] = {
  'Soft MoE': dict(router='soft', num_experts=128),
  'Experts Choice': dict(router='experts_choice') | LARGE | _CHOICE,
  'Tokens Choice': dict(router='tokens_choice') | LARGE | _CHOICE,
  'Tokens Choice, dropless': dict(router='tokens_choice') | LARGE,
  'Top-8, capacity': dict(router='tokens_choice', k=8) | SMALL | _CHOICE,
  'Top-8, dropless': dict(router='tokens_choice', k=8) | SMALL,
  'XMoE': dict(router='threshold', threshold=0.3) | SMALL,
  'ReMoE': dict(router='relu', k=8) | SMALL,
  'Expert Threshold': dict(router='expert_threshold', k=8) | SMALL,
}


def config(layer: str, size: Size, dtype: str) -> config_lib.TransformerConfig:
  """Returns the config of one of LAYERS; parameters are float32.

  Args:
    layer: its name.
    size: of what it works on.
    dtype: of the computation.
  """
  options = dict(LAYERS[layer])
  if options['num_experts'] == SMALL['num_experts']:
    options['expert_dim'] = size.mlp_dim // 8
  if 'capacity_factor' in options:
    options['group_size'] = size.examples
  return config_lib.TransformerConfig(
    width=size.width,
    mlp_dim=size.mlp_dim,
    dtype=dtype,
    moe=config_lib.MoEConfig(**options),
  )
