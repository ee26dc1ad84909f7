"""Input that a user can put right, and the exit code of what can go on."""

STOPPED = 75  # exit code of a run that stopped midway: start it again


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
