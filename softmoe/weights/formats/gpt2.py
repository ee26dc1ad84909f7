"""Decoders under the names of Hugging Face's `GPT2LMHeadModel`."""

from collections.abc import Collection
from typing import Any

from softmoe.errors import UserError
from softmoe.models.config import DecoderConfig, EncoderDecoderConfig
from softmoe.weights.formats.format import Format, told
from softmoe.weights.row import Row, norm

_EMBEDDING = 'wte.weight'
ACTIVATIONS = {'gelu': 'gelu_new', 'gelu_exact': 'gelu', 'relu': 'relu'}


def rows(model: Any, names: Collection[str]) -> list[Row]:
  """Returns the table of a decoder with learned positions."""
  prefix = '' if _EMBEDDING in names else 'transformer.'
  table = [
    Row('vocabulary/embedding', f'{prefix}{_EMBEDDING}'),
    Row('vocabulary/head', 'lm_head.weight'),
    Row('positions/table', f'{prefix}wpe.weight'),
    *norm('norm', f'{prefix}ln_f'),
  ]
  for i in range(model.depth):
    ours, theirs = f'blocks/{i}', f'{prefix}h.{i}'
    table += [
      *norm(f'{ours}/attention_norm', f'{theirs}.ln_1'),
      *(
        row
        for which, part in enumerate(('query', 'key', 'value'))
        for row in _linear(
          f'{ours}/attention/{part}', f'{theirs}.attn.c_attn', (which, 3)
        )
      ),
      *_linear(f'{ours}/attention/out', f'{theirs}.attn.c_proj'),
      *norm(f'{ours}/mlp_norm', f'{theirs}.ln_2'),
      *_linear(f'{ours}/mlp/up', f'{theirs}.mlp.c_fc'),
      *_linear(f'{ours}/mlp/down', f'{theirs}.mlp.c_proj'),
    ]
  return table


def _linear(path: str, name: str, part: tuple[int, int] = (0, 1)) -> list[Row]:
  """Returns the rows of a layer that is (inputs, outputs) here alone."""
  return [
    Row(f'{path}/kernel', f'{name}.weight', part=part),
    Row(f'{path}/bias', f'{name}.bias', part=part),
  ]


def config(experiment: Any) -> dict[str, Any]:
  """Returns the content of its `config.json`."""
  model, data = experiment.model, experiment.data
  return {
    'architectures': ['GPT2LMHeadModel'],
    'model_type': 'gpt2',
    'vocab_size': model.vocab_size,
    'n_positions': data.length,
    'n_embd': model.width,
    'n_layer': model.depth,
    'n_head': model.num_heads,
    'n_inner': model.mlp_dim,
    'activation_function': ACTIVATIONS[model.activation],
    'layer_norm_epsilon': model.norm_epsilon,
    'tie_word_embeddings': model.tied,
  }


def facts(content: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of our model that its `config.json` tells."""
  return told(
    ACTIVATIONS,
    content.get('activation_function'),
    num_heads=content.get('n_head'),
    norm_epsilon=content.get('layer_norm_epsilon'),
  )


def refuse(experiment: Any) -> None:
  """Raises a UserError for a model that GPT-2 is not."""
  model = experiment.model
  decoder = isinstance(model, DecoderConfig)
  if not decoder or isinstance(model, EncoderDecoderConfig):
    raise UserError.of_field(experiment, 'task', "'language', by a decoder")
  for field, valid, expected in (
    ('moe.blocks', not model.moe.blocks, 'none: it has no experts'),
    ('qk_norm', not model.qk_norm, 'False'),
    ('positions', model.positions == 'learned', "'learned'"),
    (
      'activation',
      model.activation in ACTIVATIONS,
      f'one of {sorted(ACTIVATIONS)}',
    ),
  ):
    if not valid:
      raise UserError.of_field(experiment, f'model.{field}', expected)


FORMAT = Format(
  name='gpt2',
  is_it=lambda names: any(name.endswith(_EMBEDDING) for name in names),
  rows=rows,
  refuse=refuse,
  config=config,
  facts=facts,
  trained={'activation': 'gelu', 'norm_epsilon': 1e-5, 'positions': 'learned'},
  ignored=r'.*\.attn\.(masked_)?bias',
)
