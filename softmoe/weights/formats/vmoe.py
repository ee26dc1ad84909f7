"""ViTs and mixtures of experts of vmoe, as arrays in a .npz.

Its sparse routers have one matrix; that of Soft MoE has `mu` and a scale.
"""

from collections.abc import Collection
from typing import Any

from softmoe.weights.formats import vit
from softmoe.weights.formats.format import Format
from softmoe.weights.row import Row, attention, dense, layer_norm

_POOL = 'MapHead'


def rows(model: Any, names: Collection[str]) -> list[Row]:
  """Returns the table of a ViT, any block of which may have experts."""
  del names
  heads = model.num_heads
  table = [
    *dense('patches', 'embedding'),
    Row('patches/class_token', 'cls'),
    Row('patches/position', 'Encoder/posembed_input/pos_embedding'),
    *layer_norm('norm', 'Encoder/encoder_norm'),
    *dense('pre_logits', 'pre_logits'),
    *dense('head', 'head'),
    Row('map_head/probe', f'{_POOL}/probe'),
    *attention(
      'map_head/attention', f'{_POOL}/MultiHeadDotProductAttention', heads
    ),
    *layer_norm('map_head/norm', f'{_POOL}/LayerNorm'),
    *_mlp('map_head/mlp', f'{_POOL}/Mlp'),
  ]
  for i in range(model.depth):
    ours, theirs = f'blocks/{i}', f'Encoder/encoderblock_{i}'
    table += [
      *layer_norm(f'{ours}/attention_norm', f'{theirs}/LayerNorm_0'),
      *attention(f'{ours}/attention', f'{theirs}/SelfAttention', heads),
      *layer_norm(f'{ours}/mlp_norm', f'{theirs}/LayerNorm_1'),
      *_mlp(f'{ours}/mlp', f'{theirs}/Mlp'),
      *_mlp(f'{ours}/mlp/experts/stacked', f'{theirs}/Moe/Mlp'),
      Row(f'{ours}/mlp/router/kernel', f'{theirs}/Moe/Router/dense/kernel'),
      Row(f'{ours}/mlp/router/phi', f'{theirs}/Moe/Router/mu'),
      Row(f'{ours}/mlp/router/scale', f'{theirs}/Moe/Router/scale'),
    ]
  return table


def _mlp(path: str, name: str) -> list[Row]:
  return [
    *dense(f'{path}/up', f'{name}/Dense_0'),
    *dense(f'{path}/down', f'{name}/Dense_1'),
  ]


FORMAT = Format(
  name='vmoe',
  is_it=lambda names: 'Encoder/encoder_norm/scale' in names,
  rows=rows,
  refuse=lambda experiment: vit.refuse(
    experiment, activations=('gelu',), dense=False, qk_norm=True
  ),
  trained={'activation': 'gelu', 'norm_epsilon': 1e-6, 'positions': 'none'},
  file='model.npz',
  headless=True,
)
