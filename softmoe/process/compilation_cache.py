"""Compiled programs stay on disk: the next start of a run finds them.

JAX's own cache, in a folder of the user's. Whoever sets
JAX_COMPILATION_CACHE_DIR decides for himself; '' is none.
"""

import hashlib
import os
import pathlib
import platform

import jax

SECONDS = 0.1  # of compiling, below which a program is not kept
MOST_BYTES = 4 << 30  # of a folder, above which the oldest half goes
_SECONDS_VARIABLE = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


def keep() -> None:
  """Lets this process find what earlier ones compiled, and keep its own.

  For a process that is alone: of a job of several one may find what others have
  to compile together. Where no folder can be had nothing is kept.
  """
  if jax.config.values['jax_compilation_cache_dir'] is not None:
    return
  try:
    cache = folder('compiled') / _host()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    _thin(cache)
  except (OSError, RuntimeError):  # the latter where there is no home
    return
  if os.access(cache, os.W_OK | os.X_OK):
    jax.config.update('jax_compilation_cache_dir', str(cache))
    if _SECONDS_VARIABLE not in os.environ:
      jax.config.update(_SECONDS_VARIABLE.lower(), SECONDS)


def folder(name: str) -> pathlib.Path:
  """Returns the user's folder for what can be made again.

  Raises:
    RuntimeError: the user has no home directory.
  """
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(home) / 'softmoe' / name


def _host() -> str:
  """Returns a name for processors of one kind: programs are for no other.

  A home directory may be shared by machines that differ, and JAX's keys do not
  tell their processors apart.
  """
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  names = 'model name', 'flags', 'Features'
  kind = {line for line in lines if line.startswith(names)}
  told = '\n'.join([platform.machine(), platform.processor(), *sorted(kind)])
  return hashlib.sha256(told.encode()).hexdigest()[:16]


def _thin(cache: pathlib.Path) -> None:
  """Drops the oldest half of a folder that is too large."""
  found = [(p.stat().st_mtime, p.stat().st_size, p) for p in cache.iterdir()]
  size = sum(size for _, size, _ in found)
  keep = size if size <= MOST_BYTES else MOST_BYTES // 2
  for _, one, path in sorted(found):
    if size <= keep:
      break
    path.unlink(missing_ok=True)
    size -= one
