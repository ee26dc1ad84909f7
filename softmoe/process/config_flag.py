"""A flag that names an experiment: a config file, or one that comes along."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags

from softmoe.errors import UserError

flags.disclaim_key_flags()  # a flag is its definer's: --help shows it there

# What a wrong flag or a config file that cannot be read raises.
ERRORS = (
  flags.Error,
  AttributeError,
  KeyError,
  OSError,
  SyntaxError,
  TypeError,
  ValueError,
)


def define(name: str, help_string: str) -> flags.FlagHolder:
  """Defines the flag `--NAME=FILE[:ARGUMENT]`; its value is a locked config."""
  holder = config_flags.DEFINE_config_file(name, None, help_string)
  flags.FLAGS[name].parser = _Parser(name)
  return holder


def load(arguments: Sequence[str]) -> Any:
  """Returns the config that a command gets from these arguments.

  Args:
    arguments: `--config=FILE[:ARGUMENT]` and `--config.FIELD=VALUE`.

  Raises:
    UserError: one of them is wrong.
  """
  argv, values = ['', *last_of_each(arguments)], flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', None, flag_values=values, sys_argv=argv
  )
  values['config'].parser = _Parser('config')
  try:
    values(argv)
  except ERRORS as e:
    given = ' '.join(arguments)
    raise UserError('config', given, explain(e)) from e
  return values.config


def last_of_each(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments without those whose config field is given again.

  A tuple would be all of its values, one behind the other.
  """
  fields = [a.partition('=')[0] if '=' in a else '' for a in arguments]
  last = {field: i for i, field in enumerate(fields)}
  return [
    argument
    for i, (argument, field) in enumerate(zip(arguments, fields, strict=True))
    if '.' not in field or last[field] == i
  ]


def explain(error: Exception) -> str:
  """Returns what is wrong with the flags, out of the layers around it."""
  for e in _chain(error):
    if isinstance(e, UserError):
      return str(e)
  if isinstance(error, (AttributeError, KeyError)):
    inner = error.args[0]  # a KeyError may be inside an AttributeError
    name = inner.args[0] if isinstance(inner, KeyError) else inner
    text = f'no such config field: {name}'
  else:
    text = str(error)
  lines = text.splitlines()
  # Of several lines the middle ones are a traceback.
  return ' '.join(lines[:1] + lines[1:][-1:])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error:
    yield error
    error = error.__context__


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
  files = {path.stem: str(path) for path in folder().glob('*.py')}
  if name not in files:
    expected = f'a file, or one of {sorted(files)}'
    raise UserError(f'--{flag}', name, expected)
  return ':'.join([files[name], *argument])


def folder() -> pathlib.Path:
  """Returns where the configs are: in a wheel inside the package."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


class _Parser(config_flags.ConfigFileFlagParser):
  def parse(self, path: str) -> Any:
    try:
      config = super().parse(find(self.name, path))
      config.get('steps')  # an unreadable file shows at the first look
    except (OSError, SyntaxError) as e:
      problem = str(e).splitlines()[-1]
      raise UserError(f'--{self.name}', path, problem) from e
    return config
