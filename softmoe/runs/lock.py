"""A lock on a file, which one process has and which ends with it.

It is the kernel's (`flock`): whatever ends the process, SIGKILL too, frees it
at once. On NFS the server keeps it for all machines alike; that of a machine
that is cut off is freed once the server misses it (90 s on Linux). A file
system without locks protects nothing, nor does gcsfuse between machines.
"""

import errno
import fcntl
import pathlib
import sys
from typing import IO

# Of file systems that know no locks.
_UNKNOWN = (errno.ENOSYS, errno.ENOTSUP)


def take(path: pathlib.Path) -> IO[str] | None:
  """Returns the file, open at its end and locked; None: another has it.

  The lock lasts until the file is closed here and in all processes that
  inherited it.
  """
  file = path.open('a')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    return None
  except OSError as e:
    if e.errno not in _UNKNOWN:
      raise
    print(f'warning: no lock on {path}: {e.strerror}', file=sys.stderr)
  return file


def is_taken(path: pathlib.Path) -> bool:
  """Tells whether a process has the lock; nobody is kept from it thereby."""
  if not path.exists():
    return False
  # Shared: of several that ask at the same time none is in another's way.
  with path.open() as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError as e:
      if e.errno not in _UNKNOWN:
        raise
  return False
