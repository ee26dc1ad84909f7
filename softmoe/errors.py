"""Every exception that ends a run in good order, and every exit code."""

import contextlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

FAILED = 1  # a run that diverged, gave up or could not write; a flaw of ours
BAD_INPUT = 2  # a UserError
STOPPED = 75  # a run that stopped midway: start it again


class UserError(ValueError):
  """Bad input from a user: a config field, a flag, a data or weights file.

  The command lines print it as one line and exit with code 2. The message
  names the field, says what was given and what would be right.

  Attributes:
    field: name of the config field, argument, flag or file at fault.
    given: what was given.
    expected: what would be right.
  """

  def __init__(self, field: str, given: object, expected: str):
    self.field, self.given, self.expected = field, given, expected
    super().__init__(f'{field}: got {given!r}; {expected}')

  @classmethod
  def of_field(cls, config: Any, field: str, expected: str) -> 'UserError':
    """Returns the error of a config's field such as 'data.batch_size'."""
    given = operator.attrgetter(field)(config)
    return cls(f'config.{field}', given, expected)


@contextlib.contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
  """Names what the user wrote where a UserError names what was made of it.

  Args:
    names: from the field of an error to the config field or flag behind it; a
      name that ends with a dot stands for all fields of that branch.
  """
  try:
    yield
  except UserError as e:
    for name, meant in names.items():
      rest = e.field.removeprefix(name)
      if e.field == name or (name.endswith('.') and rest != e.field):
        raise UserError(meant + rest, e.given, e.expected) from e
    raise


class Diverged(Exception):
  """The loss, a gradient or a parameter is no longer finite."""


class Stopped(Exception):
  """The run was told to stop, has saved its state and can go on later."""

  def __init__(self, name: str, step: int):
    """Takes the name of the signal and the step that was saved."""
    super().__init__(
      f'{name}: saved step {step}; the same command goes on from there'
    )


class Lost(Exception):
  """Another process of the job cannot be reached."""

  def __init__(self, reason: str):
    super().__init__(
      f'{reason}; the same command goes on from the last checkpoint'
    )


class WriteFailed(Exception):
  """The disk is full, a file or directory is gone, or a save went wrong."""

  def __init__(self, path: object, error: BaseException):
    """Takes what could not be written, and why."""
    reason = getattr(error, 'strerror', None) or str(error) or repr(error)
    if len(reason) > 200:
      reason = f'{reason[:60]}...{reason[-120:]}'
    super().__init__(
      f'{path} could not be written: {reason}; once that is mended, the same '
      'command goes on from the last checkpoint'
    )


class GaveUp(Exception):
  """So many starts in a row were lost without a step that another is no use."""

  def __init__(self, starts: int, step: int):
    """Takes the number of starts and the step that they all began at."""
    super().__init__(
      f'gave up: {starts} starts in a row were lost before a checkpoint after '
      f'step {step}; once the cause is mended, the same command goes on'
    )
