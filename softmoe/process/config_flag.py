"""A flag that names an experiment: a config file, or one that comes along."""

import os
import pathlib
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from softmoe.errors import UserError

flags.disclaim_key_flags()  # a flag is its definer's: --help shows it there


def define(name: str, help_string: str) -> flags.FlagHolder:
  """Defines the flag `--NAME=FILE[:ARGUMENT]`; its value is a locked config."""
  holder = config_flags.DEFINE_config_file(name, None, help_string)
  flags.FLAGS[name].parser = _Parser(name)
  return holder


def find(flag: str, given: str) -> str:
  """Returns `given` with a bare name replaced by the file that it stands for.

  Args:
    flag: name of the flag, for the error.
    given: FILE[:ARGUMENT], or NAME[:ARGUMENT] of a config that comes along.

  Raises:
    UserError: no config of this name comes along.
  """
  name, *argument = given.split(':', 1)
  if not name or '/' in name or name.endswith('.py') or os.path.isfile(name):
    return given
  files = {path.stem: str(path) for path in _folder().glob('*.py')}
  if name not in files:
    expected = f'a file, or one of {sorted(files)}'
    raise UserError(f'--{flag}', name, expected)
  return ':'.join([files[name], *argument])


def _folder() -> pathlib.Path:
  """Returns where the configs are: in a wheel inside the package."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


class _Parser(config_flags.ConfigFileFlagParser):
  def parse(self, path: str) -> Any:
    return super().parse(find(self.name, path))
