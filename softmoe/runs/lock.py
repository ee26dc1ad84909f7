"""A lock on a file, which one process has and which ends with it.

It is the kernel's (`flock`): whatever ends the process, SIGKILL too, frees it
at once. On NFS the server keeps it for all machines alike; that of a machine
that is cut off is freed once the server misses it (90 s on Linux). A file
system without such locks, as gcsfuse is between machines, protects nothing.
"""

import fcntl
import pathlib
from typing import IO


def take(path: pathlib.Path) -> IO[str] | None:
  """Returns the file, open at its end and locked; None: another has it.

  The lock lasts until the file is closed here and in all processes that
  inherited it.
  """
  return _lock(path.open('a'), fcntl.LOCK_EX)


def is_taken(path: pathlib.Path) -> bool:
  """Tells whether a process has the lock; nobody is kept from it thereby."""
  if not path.exists():
    return False
  # Shared: of several that ask at the same time none is in another's way.
  file = _lock(path.open(), fcntl.LOCK_SH)
  if file is None:
    return True
  file.close()
  return False


def _lock(file: IO[str], kind: int) -> IO[str] | None:
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    return None
  return file
