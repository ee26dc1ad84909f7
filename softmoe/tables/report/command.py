"""The report of a suite: a table, and a page to send.

python -m softmoe.tables report SUITE
"""

from softmoe.tables import options as options_lib
from softmoe.tables.report import write


def main(argv: list[str]) -> None:
  """Writes the report that the arguments ask for, and tells where it is."""
  parser = options_lib.Parser('report', 'Writes the report of a suite.')
  options = parser.parse_args(argv)
  _, suite, folders = options_lib.open_suite(options)
  folder = folders.results / folders.suite
  for path in write.write(suite, options.suite, folder):
    print(path)
