"""The model card: a `README.md` that says what a folder of weights is."""

import json
from collections.abc import Mapping
from typing import Any

from softmoe import config as config_lib
from softmoe.process import origin
from softmoe.weights.formats.format import Format

_LIBRARIES = {
  'timm': 'timm',
  'hugging_face': 'transformers',
  'gpt2': 'transformers',
}
_USE = {
  'timm': "timm.create_model('local-dir:FOLDER', pretrained=True)",
  'hugging_face': (
    "transformers.ViTForImageClassification.from_pretrained('FOLDER')"
  ),
  'gpt2': "transformers.GPT2LMHeadModel.from_pretrained('FOLDER')",
}
_OWN = 'python train.py --config=CONFIG --config.init=FOLDER'


def card(
  form: Format,
  config: config_lib.Config,
  source: str,
  count: int,
  result: Mapping[str, Any],
) -> str:
  """Returns the text, with a head that the Hub reads.

  Args:
    form: of the weights.
    config: of the model.
    source: where the parameters come from.
    count: number of parameters.
    result: figures of the run, by name; may be empty.
  """
  library = _LIBRARIES.get(form.name, 'softmoe')
  commit = origin.commit() or 'unknown'
  parts = [
    f'---\nlibrary_name: {library}\ntags:\n- softmoe\n---',
    f'# {config.name}',
    f'{count:,} parameters of {source}, under the names of {form.name}, '
    f'written by softmoe at commit {commit}.',
    f'## Use\n\n```\n{_USE.get(form.name, _OWN)}\n```',
    *([f'## Results\n\n{_table(result)}'] if result else []),
    f'## Config\n\n```json\n{_json(config)}\n```',
  ]
  return '\n\n'.join(parts) + '\n'


def _table(result: Mapping[str, Any]) -> str:
  plain = {k: v for k, v in result.items() if not isinstance(v, (dict, list))}
  rows = [f'| {name} | {value} |' for name, value in plain.items()]
  return '\n'.join(['| what | value |', '| --- | --- |', *rows])


def _json(config: config_lib.Config) -> str:
  return json.dumps(config_lib.to_dict(config), indent=2)
