"""Writes the two files of a suite's report beside its results."""

import pathlib

from softmoe.errors import UserError
from softmoe.tables.report import markdown, summary
from softmoe.tables.report.page import html_page
from softmoe.tables.suite import Suite


def write(suite: Suite, name: str, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes `report.md` and `report.html` into a folder of results.

  Args:
    suite: whose runs they are.
    name: of the suite, or its file, as commands take it.
    folder: of its results.

  Returns:
    the files.

  Raises:
    UserError: nothing is finished, runs saw different data, or the folder
      cannot be written to.
  """
  content = summary.summarise(suite, name, folder)
  texts = {'report.md': markdown.write, 'report.html': html_page.write}
  for file, made in texts.items():
    try:
      (folder / file).write_text(made(content))
    except OSError as e:
      raise UserError('SUITE', name, f'{folder} writable ({e.strerror})') from e
  return [folder / file for file in texts]
