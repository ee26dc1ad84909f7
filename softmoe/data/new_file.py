"""A file that is there as a whole or not at all, and overwrites none."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO

from softmoe.errors import UserError


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Gives a file to write to, which is called `path` once all is written.

  Raises:
    UserError: there is something at `path`, it cannot be made, or the disk is
      full.
  """
  path = path.expanduser()
  check(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, since a file is renamed within one file system alone.
    number, temporary = tempfile.mkstemp(prefix='.new.', dir=path.parent)
  except OSError as error:
    expected = f'a file that can be made ({error.strerror})'
    raise UserError('OUT', str(path), expected) from error
  try:
    with writing(path, temporary):
      with open(number, 'wb') as file:
        yield file
      os.chmod(temporary, 0o644)  # mkstemp keeps others out
      check(path)
      os.replace(temporary, path)
  finally:
    pathlib.Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: pathlib.Path, temporary: str) -> Iterator[None]:
  """Turns an error of the file system into one that names `path`.

  Args:
    path: what is made.
    temporary: what it, or the folder of all of it, is called until then. An
      error that names another file, one that is read, is left as it is.

  Raises:
    UserError: there was such an error.
  """
  try:
    yield
  except OSError as error:
    if error.filename and not str(error.filename).startswith(temporary):
      raise
    expected = f'a path with room for all of it ({error.strerror or error})'
    raise UserError('OUT', str(path), expected) from error


def check(path: pathlib.Path) -> None:
  """Raises a UserError unless `path` is free."""
  if os.path.lexists(path.expanduser()):
    raise UserError('OUT', str(path), 'a path where there is no file yet')
