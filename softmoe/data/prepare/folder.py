"""A folder that is there as a whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from softmoe.data import new_file
from softmoe.errors import UserError


@contextlib.contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a folder to write into, which is called `out` once all is written.

  Raises:
    UserError: `out` holds something, is a file, or cannot be made; the disk is
      full.
  """
  path = pathlib.Path(out).expanduser().resolve()
  check(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, since a folder is renamed within one file system alone.
    temporary = tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent)
  except OSError as e:
    expected = f'a folder that can be made ({e.strerror})'
    raise UserError('OUT', str(path), expected) from e
  try:
    with new_file.writing(path, temporary):
      yield pathlib.Path(temporary)
      os.chmod(temporary, 0o755)  # mkdtemp keeps others out
      check(path)
      os.replace(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def check(path: pathlib.Path) -> None:
  """Raises a UserError unless `path` is free, or an empty folder."""
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise UserError('OUT', str(path), 'a folder that is new or empty')
