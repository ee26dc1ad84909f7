"""Writes the two files of a suite's report beside its results."""

import pathlib

from softmoe.errors import UserError
from softmoe.tables.report import markdown
from softmoe.tables.report.page import html_page
from softmoe.tables.report.summary import Summary

_FILES = {'report.md': markdown.write, 'report.html': html_page.write}


def write(summary: Summary, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes `report.md` and `report.html` into a folder, and returns them.

  Raises:
    UserError: the folder cannot be written to.
  """
  for file, made in _FILES.items():
    try:
      (folder / file).write_text(made(summary))
    except OSError as e:
      raise UserError(
        '--results', str(folder), f'writable ({e.strerror})'
      ) from e
  return [folder / file for file in _FILES]
