"""What the paper's models cost, its figures beside ours.

python -m softmoe.tables cost --table=9
"""

import json
import platform
from importlib import metadata
from typing import Any

from absl import flags

from softmoe.process import launch

_TABLE = flags.DEFINE_enum(
  'table', 'all', ['all', '1', '8', '9'], 'Which table of the paper.'
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object.')


def run() -> None:
  """Runs the command line; the process ends with its exit code."""
  launch.run(main, alone=True)


def main() -> None:
  """Prints the tables."""
  import jax

  from softmoe.tables.cost import figures, published, text

  jax.config.update('jax_platforms', 'cpu')  # nothing is computed
  chosen = _TABLE.value
  tables = published.TABLES if chosen == 'all' else (int(chosen),)
  found = {table: figures.of_table(table) for table in tables}
  if _JSON.value:
    print(json.dumps({'versions': _versions(), 'tables': found}))
    return
  flag = '' if chosen == 'all' else f' --table={chosen}'
  versions = ', '.join(f'{k} {v}' for k, v in _versions().items())
  print(f'`python -m softmoe.tables cost{flag}`, {versions}\n\n{text.LEGEND}')
  for table, rows in found.items():
    print(f'\n{text.section(table, rows)}')


def _versions() -> dict[str, Any]:
  packages = ('softmoe', 'jax', 'flax')
  versions = {name: metadata.version(name) for name in packages}
  return {'Python': platform.python_version()} | versions
