"""Where a figure comes from: commit, versions, machine."""

import importlib.metadata
import pathlib
import platform
import subprocess

import jax

from softmoe.process import launch


def commit() -> str:
  """Returns the git commit of this code; '-dirty': it was changed since.

  Empty outside a checkout.
  """
  if not _git('ls-files', str(pathlib.Path(__file__))):
    return ''
  changed = _git('status', '--porcelain', '--untracked-files=no')
  return _git('rev-parse', 'HEAD') + ('-dirty' if changed else '')


def versions() -> dict[str, str]:
  """Returns those of Python and of what computes."""
  names = ('jax', 'flax', 'softmoe')
  return {'python': platform.python_version()} | {
    name: _version(name) for name in names
  }


def machine() -> str:
  """Returns the devices that this process computes on."""
  if jax.default_backend() != 'cpu':
    return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  return f'{_processor()}, {len(launch.cores())} core(s)'


def _git(*arguments: str) -> str:
  try:
    done = subprocess.run(
      ['git', *arguments],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
    )
  except OSError:
    return ''
  return done.stdout.strip() if done.returncode == 0 else ''


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ''


def _processor() -> str:
  try:
    with open('/proc/cpuinfo') as file:
      names = [line for line in file if line.startswith('model name')]
    return names[0].partition(':')[2].strip()
  except (OSError, IndexError):
    return platform.machine()
