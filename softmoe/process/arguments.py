"""Arguments of the commands that take no config."""

import argparse
from typing import NoReturn

from softmoe.errors import UserError


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def __init__(self, program: str, description: str):
    super().__init__(program, description=description, allow_abbrev=False)

  def error(self, message: str) -> NoReturn:
    """Raises a UserError."""
    raise UserError('arguments', self.prog, message)


def positive(text: str) -> int:
  """Returns a number of at least 1; argparse's type."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not 1 or more')
  return int(text)
