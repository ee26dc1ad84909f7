"""timm's vision transformers: `timm.models.vision_transformer`.

Also the ViTs of DINO and SigLIP as timm has them; layer scale (DINOv2) becomes
a part of the matrix before it.
"""

from collections.abc import Collection
from typing import Any

from softmoe.errors import UserError
from softmoe.weights.formats import vit
from softmoe.weights.formats.format import Format, told
from softmoe.weights.row import Row, linear, norm

POOLS = {'token': 'token', 'gap': 'avg', 'map': 'map'}
ACTIVATIONS = {'gelu_exact': 'gelu', 'gelu': 'gelu_tanh', 'relu': 'relu'}
EPSILON = 1e-6


def rows(model: Any, names: Collection[str]) -> list[Row]:
  """Returns the table of a ViT."""
  table = [
    Row('patches/kernel', 'patch_embed.proj.weight', axes=(2, 3, 1, 0)),
    Row('patches/bias', 'patch_embed.proj.bias'),
    Row('patches/class_token', 'cls_token'),
    Row('patches/position', 'pos_embed'),
    *norm('norm', 'norm'),
    *linear('head', 'head'),
    Row('map_head/probe', 'attn_pool.latent'),
    *linear('map_head/attention/query', 'attn_pool.q'),
    *linear('map_head/attention/key', 'attn_pool.kv', part=(0, 2)),
    *linear('map_head/attention/value', 'attn_pool.kv', part=(1, 2)),
    *linear('map_head/attention/out', 'attn_pool.proj'),
    *norm('map_head/norm', 'attn_pool.norm'),
    *linear('map_head/mlp/up', 'attn_pool.mlp.fc1'),
    *linear('map_head/mlp/down', 'attn_pool.mlp.fc2'),
  ]
  for i in range(model.depth):
    ours, theirs = f'blocks/{i}', f'blocks.{i}'
    table += [
      *norm(f'{ours}/attention_norm', f'{theirs}.norm1'),
      *(
        row
        for which, part in enumerate(('query', 'key', 'value'))
        for row in linear(
          f'{ours}/attention/{part}', f'{theirs}.attn.qkv', part=(which, 3)
        )
      ),
      *_scaled(f'{ours}/attention/out', f'{theirs}.attn.proj', 'ls1', names),
      *norm(f'{ours}/mlp_norm', f'{theirs}.norm2'),
      *linear(f'{ours}/mlp/up', f'{theirs}.mlp.fc1'),
      *_scaled(f'{ours}/mlp/down', f'{theirs}.mlp.fc2', 'ls2', names),
    ]
  return table


def _scaled(
  path: str, name: str, scale: str, names: Collection[str]
) -> list[Row]:
  gamma = f'{name.rsplit(".", 2)[0]}.{scale}.gamma'
  return linear(path, name, scale=gamma if gamma in names else '')


def config(experiment: Any) -> dict[str, Any]:
  """Returns what `timm.create_model` takes."""
  model, data = experiment.model, experiment.data
  return {
    'architecture': 'vit_base_patch16_224',
    'num_classes': data.num_classes,
    'model_args': {
      'img_size': list(data.image_size),
      'patch_size': list(model.patch_size),
      'in_chans': data.channels,
      'embed_dim': model.width,
      'depth': model.depth,
      'num_heads': model.num_heads,
      'mlp_ratio': model.mlp_dim / model.width,
      'global_pool': POOLS[model.pool],
      'class_token': model.pool == 'token',
      'fc_norm': False,
      'act_layer': ACTIVATIONS[model.activation],
    },
    'pretrained_cfg': {
      'input_size': [data.channels, *data.image_size],
      'num_classes': data.num_classes,
      **vit.mean_and_std(data),
    },
  }


def facts(content: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of our model that its `config.json` tells.

  Many have no `model_args`: what the name of their architecture stands for is
  known to timm alone.
  """
  arguments = content.get('model_args')
  if not isinstance(arguments, dict):
    return {}
  heads = arguments.get('num_heads')
  return told(ACTIVATIONS, arguments.get('act_layer'), num_heads=heads)


def refuse(experiment: Any) -> None:
  """Raises a UserError for a model that timm has no names for."""
  vit.refuse(experiment, activations=ACTIVATIONS)
  model = experiment.model
  if model.representation_size:
    raise UserError.of_field(experiment, 'model.representation_size', '0')
  if model.norm_epsilon != EPSILON:
    expected = f'{EPSILON}, which timm always has'
    raise UserError.of_field(experiment, 'model.norm_epsilon', expected)


FORMAT = Format(
  name='timm',
  is_it=lambda names: 'patch_embed.proj.weight' in names,
  rows=rows,
  refuse=refuse,
  config=config,
  facts=facts,
  trained={
    'activation': 'gelu_exact',
    'norm_epsilon': EPSILON,
    'positions': 'none',
  },
  foreign={
    'reg_token': 'register tokens',
    'fc_norm': 'a norm after the pooling',
    'norm_pre': 'a norm before the blocks',
    'q_norm': 'norms of queries with a bias',
    'dist_token': 'a token for distillation',
  },
  headless=True,
)
