"""What the papers' models cost, their figures beside ours.

python -m softmoe.tables cost --table=9
"""

import argparse
import functools
import json

from softmoe.tables import options as options_lib
from softmoe.tables.cost import published

LADDER = 'xmoe'


def main(argv: list[str]) -> None:
  """Prints the tables that the arguments ask for."""
  options = _parse(argv)
  import jax

  from softmoe.process import origin
  from softmoe.tables.cost import figures, ladder, text

  jax.config.update('jax_platforms', 'cpu')  # nothing is computed
  chosen = options.table
  makers = {
    str(table): functools.partial(figures.of_table, table)
    for table in published.TABLES
  } | {LADDER: ladder.of_all}
  names = makers if chosen == 'all' else [chosen]
  found = {name: makers[name]() for name in names}
  if options.json:
    print(json.dumps({'versions': origin.versions(), 'tables': found}))
    return
  flag = '' if chosen == 'all' else f' --table={chosen}'
  versions = ', '.join(f'{k} {v}' for k, v in origin.versions().items())
  print(f'`python -m softmoe.tables cost{flag}`, {versions}\n\n{text.LEGEND}')
  for name, rows in found.items():
    print(f'\n{text.section(name, rows)}')


def _parse(argv: list[str]) -> argparse.Namespace:
  parser = options_lib.Parser('cost', "What the papers' models cost.")
  parser.add_argument(
    '--table',
    default='all',
    choices=['all', *map(str, published.TABLES), LADDER],
    help="of the Soft MoE paper, or XMoE's language models",
  )
  parser.add_argument('--json', action='store_true', help='one JSON object')
  return parser.parse_args(argv)
