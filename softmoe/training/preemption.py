"""Being told to stop: a flag that the loop looks at between steps."""

import signal


class Stopped(Exception):
  """The run was told to stop, has saved its state and can go on later."""

  def __init__(self, name: str, step: int):
    """Takes the name of the signal and the step that was saved."""
    super().__init__(
      f'{name}: saved step {step}; the same command goes on from there'
    )


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
    for each in self._previous:
      signal.signal(each, signal.SIG_DFL)
