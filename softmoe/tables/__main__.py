"""The tables: one command each.

python -m softmoe.tables cost --help
"""

import importlib
import sys

from softmoe.errors import UserError
from softmoe.process import launch

# A module has `run()`, which reads the rest of the command line.
COMMANDS = {'cost': 'softmoe.tables.cost.command'}


def find(arguments: list[str]) -> str:
  """Returns the module of the command that is named first.

  Raises:
    UserError: there is none of this name.
  """
  name = arguments[0] if arguments else ''
  if name not in COMMANDS:
    expected = f'one of {sorted(COMMANDS)}'
    raise UserError('python -m softmoe.tables COMMAND', name, expected)
  return COMMANDS[name]


def main() -> None:
  """Runs the command that the command line names."""
  module = importlib.import_module(find(sys.argv[1:]))
  del sys.argv[1]  # what is left are the command's own arguments
  module.run()


if __name__ == '__main__':
  launch.guard(main)
