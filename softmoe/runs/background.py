"""One piece of work at a time that goes on in the background."""

import threading
from collections.abc import Callable


class Task:
  """A thread whose error is raised by whoever asks after it, once.

  It does not keep a process from ending.
  """

  def __init__(self):
    """Has nothing to do yet."""
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None

  def start(self, work: Callable[[], None]) -> None:
    """Begins `work`; the work before it has been waited for."""
    self._thread = threading.Thread(target=self._run, args=[work], daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises what the work raised, if it has ended."""
    if self._thread is not None and not self._thread.is_alive():
      self.wait()

  def wait(self) -> None:
    """Waits until the work has ended, and raises what it raised."""
    if self._thread is not None:
      self._thread.join()
    error, self._thread, self._error = self._error, None, None
    if error is not None:
      raise error

  def _run(self, work: Callable[[], None]) -> None:
    try:
      work()
    except BaseException as e:
      self._error = e
