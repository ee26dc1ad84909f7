"""Tables: the paper's costs, and what the runs of a suite say.

python -m softmoe.tables TABLE ...
"""

import importlib
import signal
import sys

from softmoe.errors import UserError
from softmoe.process import arguments, launch

# What prints or makes it: 'module:function', called with the other arguments.
TABLES = {
  'cost': 'softmoe.tables.cost.command:main',
  'profile': 'softmoe.tables.profile:main',
  'report': 'softmoe.tables.report.command:main',
  'run': 'softmoe.tables.run:main',
  'thresholds': 'softmoe.tables.thresholds.command:main',
  'time': 'softmoe.tables.timing:main',
}


def main(argv: list[str]) -> None:
  """Makes the table that the arguments name."""
  names = f'one of {sorted(TABLES)}'
  parser = arguments.Parser('softmoe.tables', 'What the paper and runs say.')
  parser.add_argument('table', nargs='?', default='', help=names)
  name = parser.parse_args(argv[:1]).table
  if name not in TABLES:
    raise UserError('TABLE', name, names)
  module, function = TABLES[name].split(':')
  getattr(importlib.import_module(module), function)(argv[1:])


if __name__ == '__main__':
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it silently
  launch.guard(lambda: main(sys.argv[1:]))
