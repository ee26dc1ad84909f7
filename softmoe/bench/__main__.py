"""Times every kind of layer on one device of the machine at hand.

python -m softmoe.bench --sizes S/16 text --dtype bfloat16 --json FILE

All layers of a size are timed in turn, so that ratios hold on a machine that is
not quiet; times are medians. The floor of a row is the longer of its matmuls at
the measured rate and of its weights and tokens at the measured rate of memory:
routing and mixing take no time in it.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax

from softmoe.bench import cases, machine, measure, table
from softmoe.errors import UserError
from softmoe.process import arguments, launch, origin


def main(argv: list[str]) -> None:
  """Prints a table a size, and writes the report that is asked for."""
  options = _parser().parse_args(argv)
  path = pathlib.Path(options.json)
  if options.json and (path.exists() or not path.parent.is_dir()):
    expected = 'a new file in a folder that is there'
    raise UserError('--json', options.json, expected)
  launch.keep_heap()
  report = _where(options)
  for name in options.sizes:
    rows = measure.measure(
      cases.SIZES[name],
      options.layers,
      dtype=options.dtype,
      rates=report['rates'],
      rounds=options.rounds,
    )
    print(table.write(name, rows) + '\n', flush=True)
    report['sizes'][name] = rows
  print(table.where(report))
  if options.json:
    path.write_text(json.dumps(report, default=dataclasses.asdict, indent=2))


def _where(options: argparse.Namespace) -> dict[str, Any]:
  """Returns the machine, and an empty place for what is measured on it."""
  return {
    'machine': origin.machine(),
    'device': jax.devices()[0].device_kind,
    'threads': len(launch.cores()) if jax.default_backend() == 'cpu' else None,
    'versions': origin.versions(),
    'commit': origin.commit(),
    'dtype': options.dtype,
    'rounds': options.rounds,
    'rates': machine.measure(options.dtype),
    'sizes': {},
  }


def _parser() -> arguments.Parser:
  parser = arguments.Parser('softmoe.bench', 'Times layers on one device.')
  sizes, layers = list(cases.SIZES), list(cases.LAYERS)
  parser.add_argument(
    '--sizes', nargs='+', choices=sizes, default=sizes, metavar='SIZE'
  )
  parser.add_argument(
    '--layers', nargs='+', choices=layers, default=layers, metavar='LAYER'
  )
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--rounds', type=arguments.positive, default=20)
  parser.add_argument('--json', default='', metavar='FILE', help='a report too')
  return parser


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
