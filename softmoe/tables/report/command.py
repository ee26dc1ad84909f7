"""The report of a suite: a table, and a page to send.

python -m softmoe.tables report SUITE
"""

import sys

from softmoe.tables import options as options_lib
from softmoe.tables.report import summary, write


def main(argv: list[str]) -> None:
  """Writes the report that the arguments ask for, and tells where it is."""
  parser = options_lib.suite_parser('report', 'Writes the report of a suite.')
  options = parser.parse_args(argv)
  _, suite, folders = options_lib.open_suite(options)
  folder = folders.results / folders.suite
  content = summary.summarise(suite, options.suite, folder)
  for note in content.notes:
    print(f'warning: {note}', file=sys.stderr)
  print(content.status)
  for path in write.write(content, folder):
    print(path)
