"""Being told to stop: a flag that the loop looks at between steps."""

import signal


class Stopped(Exception):
  """The run was told to stop, has saved its state and can go on later."""


class StopSignal:
  """Notes SIGTERM and SIGINT while it is in force; a second one kills.

  Attributes:
    name: of the signal that came, empty before.
  """

  def __init__(self):
    self.name = ''
    self._previous = {}

  def __enter__(self) -> 'StopSignal':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _note(self, number, frame) -> None:
    del frame
    self.name = signal.Signals(number).name
    signal.signal(number, signal.SIG_DFL)
