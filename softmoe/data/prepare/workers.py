"""A function of many arguments, on several processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Argument = TypeVar('Argument')
Result = TypeVar('Result')


def each(
  function: Callable[[Argument], Result],
  arguments: Sequence[Argument],
  processes: int,
) -> Iterator[Result]:
  """Yields the function's results in the order of its arguments."""
  if processes == 1:
    yield from map(function, arguments)
    return
  # A forked process may inherit a lock that nobody will open.
  with multiprocessing.get_context('spawn').Pool(processes) as pool:
    yield from pool.imap(function, arguments)
