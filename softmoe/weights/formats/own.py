"""Our own: every parameter under its path, whatever the model."""

from typing import Any

from softmoe import config as config_lib
from softmoe.weights.formats.format import Format
from softmoe.weights.row import Row


def facts(content: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of the model that its `config.json` tells."""
  model = content.get('model')
  model = model if isinstance(model, dict) else {}
  fields = ('num_heads', 'norm_epsilon', 'activation')
  return {field: model[field] for field in fields if field in model}


FORMAT = Format(
  name='softmoe',
  is_it=lambda names: any(n.endswith('/attention/query/kernel') for n in names),
  rows=lambda model, names: [Row(name, name) for name in names],
  refuse=lambda experiment: None,
  config=config_lib.to_dict,
  facts=facts,
)
