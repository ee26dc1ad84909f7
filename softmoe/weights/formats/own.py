"""Our own: every parameter under its path, whatever the model."""

from softmoe import config as config_lib
from softmoe.weights.formats.format import Format
from softmoe.weights.row import Row

FORMAT = Format(
  name='softmoe',
  is_it=lambda names: any(n.endswith('/attention/query/kernel') for n in names),
  rows=lambda model, names: [Row(name, name) for name in names],
  refuse=lambda experiment: None,
  config=config_lib.to_dict,
)
