"""A folder for a while, that no fork takes away."""

import contextlib
import pathlib
import shutil
import tempfile


@contextlib.contextmanager
def folder():
  """Gives a new folder. A `TemporaryDirectory` goes with any fork that ends."""
  path = tempfile.mkdtemp(prefix='campaign.')
  try:
    yield pathlib.Path(path)
  finally:
    shutil.rmtree(path, ignore_errors=True)
