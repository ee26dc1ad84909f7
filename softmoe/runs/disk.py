"""What is written is on disk, whole, or the run ends.

A file that replaces another is synced before it gets its name, and the
directory after that: a power cut leaves the old one or the new one.
"""

import contextlib
import errno
import itertools
import os
import pathlib
from collections.abc import Iterator

from softmoe.errors import WriteFailed

# Of file systems that know no sync of a directory, and need none.
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file at once: a reader sees all of it or the one before.

  A link of that name is replaced; what it points to stays.

  Raises:
    WriteFailed: the disk is full, or the directory is gone.
  """
  # Hidden, so that a workdir which holds no more than this is an empty one.
  temporary = path.with_name(f'.{path.name}')
  with writing(path):
    temporary.unlink(missing_ok=True)
    with temporary.open('xb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    rename(temporary, path)


def rename(old: pathlib.Path, new: pathlib.Path) -> None:
  """Gives a file or directory, itself on disk already, a name for good.

  Raises:
    OSError: it cannot be.
  """
  old.replace(new)
  sync(new.parent)


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a directory, are on disk.

  Raises:
    OSError: they cannot be.
  """
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  except OSError as e:
    if e.errno not in _UNKNOWN or not path.is_dir():
      raise
  finally:
    os.close(number)


def set_aside(path: pathlib.Path, word: str) -> pathlib.Path:
  """Renames a file or directory to NAME.WORD, or NAME.WORD2 and so on.

  Returns:
    Its path from then on, which nothing had.

  Raises:
    WriteFailed: it cannot be renamed.
  """
  endings = itertools.chain([''], itertools.count(2))
  names = (path.with_name(f'{path.name}.{word}{end}') for end in endings)
  free = next(name for name in names if not os.path.lexists(name))
  with writing(path):
    rename(path, free)
  return free


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Turns an error of the file system into one that names `path`."""
  try:
    yield
  except OSError as e:
    raise WriteFailed(path, e) from e


class Log:
  """A file that grows: what is written is the kernel's at once, torn at most.

  It outlives the process then, and the machine after `sync`.
  """

  def __init__(self, path: pathlib.Path):
    """Opens it at its end; it is made if it is not there.

    Raises:
      WriteFailed: it cannot be.
    """
    self._path = path
    with writing(path):
      self._file = path.open('ab', buffering=0)
      sync(path.parent)

  def write(self, content: bytes) -> None:
    """Appends `content`.

    Raises:
      WriteFailed: the disk is full.
    """
    with writing(self._path):
      while content:
        content = content[self._file.write(content) :]

  def sync(self) -> None:
    """Waits until all that was written is on disk.

    Raises:
      WriteFailed: it cannot be brought there.
    """
    with writing(self._path):
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes it."""
    self._file.close()
