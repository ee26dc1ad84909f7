"""Which of Debian's packages are installed."""

import subprocess
from collections.abc import Iterable

from softmoe.errors import UserError

_INSTALLED = 'i'  # behind what is wanted: 'i' to install, 'h' to hold


def versions(names: Iterable[str]) -> dict[str, str]:
  """Returns the version of each package.

  Raises:
    UserError: some are not installed; it says how to install them.
  """
  names = sorted(names)
  known = _query(names)
  missing = ' '.join(name for name in names if name not in known)
  if missing:
    expected = f'all of them: apt-get install {missing}; see docs/corpora.md'
    raise UserError('packages', f'{missing} not installed', expected)
  return {name: known[name] for name in names}


def _query(names: list[str]) -> dict[str, str]:
  """Returns the versions of those of the packages that are installed."""
  line = '${Package} ${Version} ${db:Status-Abbrev}\n'
  command = ['dpkg-query', '--show', f'--showformat={line}', *names]
  try:
    # It fails where a name is unknown, and still lists the others.
    answer = subprocess.run(command, capture_output=True, text=True).stdout
  except OSError as e:
    expected = f"a system with Debian's packages ({e.strerror})"
    raise UserError('dpkg-query', 'not found', expected) from e
  rows = (row.split() for row in answer.splitlines())
  return {
    row[0]: row[1] for row in rows if row[2:] and row[2][1:] == _INSTALLED
  }
