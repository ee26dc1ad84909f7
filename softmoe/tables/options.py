"""Arguments of the tables that read and write the folders of a suite."""

import argparse
import pathlib
from typing import NoReturn

from softmoe.errors import UserError
from softmoe.tables import folders as folders_lib
from softmoe.tables import suite as suite_lib


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line, and which knows SUITE and folders."""

  def __init__(self, table: str, description: str):
    super().__init__(
      f'softmoe.tables {table}', description=description, allow_abbrev=False
    )
    self.add_argument('suite', metavar='SUITE', help='a name or a file')
    for name, holds in (('results', 'one JSON a run'), ('runs', 'workdirs')):
      self.add_argument(
        f'--{name}', default=name, metavar='DIR', help=f'of {holds}'
      )

  def error(self, message: str) -> NoReturn:
    """Raises a UserError."""
    raise UserError('arguments', self.prog, message)


def positive(text: str) -> int:
  """Returns a number of at least 1; argparse's type."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not 1 or more')
  return int(text)


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
