"""Hugging Face's `ViTForImageClassification` and `ViTModel`."""

from collections.abc import Collection
from typing import Any

from softmoe.errors import UserError
from softmoe.weights.formats import vit
from softmoe.weights.formats.format import Format, told
from softmoe.weights.row import Row, linear, norm

_KERNEL = 'embeddings.patch_embeddings.projection.weight'
ACTIVATIONS = {
  'gelu_exact': 'gelu',
  'gelu': 'gelu_pytorch_tanh',
  'relu': 'relu',
}


def rows(model: Any, names: Collection[str]) -> list[Row]:
  """Returns the table of a ViT with a class token."""
  whole = [name for name in names if name.endswith(_KERNEL)]
  prefix = whole[0].removesuffix(_KERNEL) if whole else 'vit.'
  patches = f'{prefix}embeddings.patch_embeddings.projection'
  table = [
    Row('patches/kernel', f'{patches}.weight', axes=(2, 3, 1, 0)),
    Row('patches/bias', f'{patches}.bias'),
    Row('patches/class_token', f'{prefix}embeddings.cls_token'),
    Row('patches/position', f'{prefix}embeddings.position_embeddings'),
    *norm('norm', f'{prefix}layernorm'),
    *linear('head', 'classifier'),
  ]
  for i in range(model.depth):
    ours, theirs = f'blocks/{i}', f'{prefix}encoder.layer.{i}'
    table += [
      *norm(f'{ours}/attention_norm', f'{theirs}.layernorm_before'),
      *(
        row
        for part in ('query', 'key', 'value')
        for row in linear(
          f'{ours}/attention/{part}', f'{theirs}.attention.attention.{part}'
        )
      ),
      *linear(f'{ours}/attention/out', f'{theirs}.attention.output.dense'),
      *norm(f'{ours}/mlp_norm', f'{theirs}.layernorm_after'),
      *linear(f'{ours}/mlp/up', f'{theirs}.intermediate.dense'),
      *linear(f'{ours}/mlp/down', f'{theirs}.output.dense'),
    ]
  return table


def config(experiment: Any) -> dict[str, Any]:
  """Returns the content of its `config.json`."""
  model, data = experiment.model, experiment.data
  classes = range(data.num_classes)
  return {
    'architectures': ['ViTForImageClassification'],
    'model_type': 'vit',
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.mlp_dim,
    'hidden_act': ACTIVATIONS[model.activation],
    'layer_norm_eps': model.norm_epsilon,
    'image_size': _one_or_two(data.image_size),
    'patch_size': _one_or_two(model.patch_size),
    'num_channels': data.channels,
    'qkv_bias': True,
    'id2label': {str(i): f'LABEL_{i}' for i in classes},
    'label2id': {f'LABEL_{i}': i for i in classes},
  }


def _one_or_two(sizes: tuple[int, int]) -> Any:
  return sizes[0] if sizes[0] == sizes[1] else list(sizes)


def facts(content: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of our model that its `config.json` tells."""
  return told(
    ACTIVATIONS,
    content.get('hidden_act'),
    num_heads=content.get('num_attention_heads'),
    norm_epsilon=content.get('layer_norm_eps'),
  )


def refuse(experiment: Any) -> None:
  """Raises a UserError for a model that it has no names for."""
  vit.refuse(experiment, activations=ACTIVATIONS)
  model = experiment.model
  if model.pool != 'token':
    expected = "'token': its class reads the class token"
    raise UserError.of_field(experiment, 'model.pool', expected)
  if model.representation_size:
    raise UserError.of_field(experiment, 'model.representation_size', '0')


FORMAT = Format(
  name='hugging_face',
  is_it=lambda names: any(name.endswith(_KERNEL) for name in names),
  rows=rows,
  refuse=refuse,
  config=config,
  facts=facts,
  trained={
    'activation': 'gelu_exact',
    'norm_epsilon': 1e-12,
    'positions': 'none',
  },
  foreign={
    'distillation_token': 'a token for distillation',
    'pooler': 'a layer after the class token',
    'mask_token': 'a token of what is masked',
    'layer_scale': 'layer scale',
  },
  ignored=r'.*\.position_ids',
)
