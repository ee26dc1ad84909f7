"""ViTs of big_vision and of AugReg (vision_transformer), as arrays in a .npz.

The two differ in the numbers of a block's parts and in the positions: AugReg
has them below another name, and one for the class token. In big_vision this
token comes in front of patches that have their positions already.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from softmoe.weights.formats import vit
from softmoe.weights.formats.format import Format
from softmoe.weights.row import Arrays, Row, attention, dense, layer_norm

_AUGREG = 'Transformer/posembed_input/pos_embedding'
_MAP = 'MAPHead_0'


def rows(model: Any, names: Collection[str]) -> list[Row]:
  """Returns the table of a ViT; as it is written, big_vision's."""
  augreg = _AUGREG in names
  attend, second, mlp = (1, 2, 3) if augreg else (0, 1, 0)
  name_of_attention = f'MultiHeadDotProductAttention_{attend}'
  heads = model.num_heads
  pool = f'{_MAP}/MultiHeadDotProductAttention_0'
  position = _AUGREG if augreg else 'pos_embedding'
  late = 'cls' in names and not augreg
  table = [
    *dense('patches', 'embedding'),
    Row('patches/class_token', 'cls'),
    Row('patches/position', position, first=int(late)),
    *layer_norm('norm', 'Transformer/encoder_norm'),
    *dense('pre_logits', 'pre_logits'),
    *dense('head', 'head'),
    Row('map_head/probe', f'{_MAP}/probe'),
    *attention('map_head/attention', pool, heads),
    *layer_norm('map_head/norm', f'{_MAP}/LayerNorm_0'),
    *dense('map_head/mlp/up', f'{_MAP}/MlpBlock_0/Dense_0'),
    *dense('map_head/mlp/down', f'{_MAP}/MlpBlock_0/Dense_1'),
  ]
  for i in range(model.depth):
    ours, theirs = f'blocks/{i}', f'Transformer/encoderblock_{i}'
    table += [
      *layer_norm(f'{ours}/attention_norm', f'{theirs}/LayerNorm_0'),
      *attention(f'{ours}/attention', f'{theirs}/{name_of_attention}', heads),
      *layer_norm(f'{ours}/mlp_norm', f'{theirs}/LayerNorm_{second}'),
      *dense(f'{ours}/mlp/up', f'{theirs}/MlpBlock_{mlp}/Dense_0'),
      *dense(f'{ours}/mlp/down', f'{theirs}/MlpBlock_{mlp}/Dense_1'),
    ]
  return table


def fold(params: Arrays) -> Arrays:
  """Returns parameters whose class token holds its own position."""
  token, position = 'patches/class_token', 'patches/position'
  if token not in params:
    return params
  own, others = np.split(params[position], [1], axis=1)
  return {**params, token: params[token] + own, position: others}


FORMAT = Format(
  name='big_vision',
  is_it=lambda names: 'Transformer/encoder_norm/scale' in names,
  rows=rows,
  refuse=lambda experiment: vit.refuse(
    experiment, activations=('gelu',), qk_norm=True
  ),
  trained={'activation': 'gelu', 'norm_epsilon': 1e-6, 'positions': 'none'},
  file='model.npz',
  headless=True,
  fold=fold,
)
