"""Arguments of the tables, and those that name a suite and its folders."""

import argparse
import pathlib

from softmoe.process import arguments
from softmoe.tables import folders as folders_lib
from softmoe.tables import suite as suite_lib


class Parser(arguments.Parser):
  """The parser of a table."""

  def __init__(self, table: str, description: str):
    super().__init__(f'softmoe.tables {table}', description)


def suite_parser(table: str, description: str) -> Parser:
  """Returns a parser that knows SUITE and its folders."""
  parser = Parser(table, description)
  parser.add_argument('suite', metavar='SUITE', help='a name or a file')
  for name, holds in (('results', 'one JSON a run'), ('runs', 'workdirs')):
    parser.add_argument(
      f'--{name}', default=name, metavar='DIR', help=f'of {holds}'
    )
  return parser


def open_suite(
  options: argparse.Namespace,
) -> tuple[pathlib.Path, suite_lib.Suite, folders_lib.Folders]:
  """Returns the suite that the arguments name, its file and its folders.

  Raises:
    UserError: there is none.
  """
  path = suite_lib.find(options.suite)
  results, runs = pathlib.Path(options.results), pathlib.Path(options.runs)
  folders = folders_lib.Folders(path.stem, results, runs)
  return path, suite_lib.load(path), folders
