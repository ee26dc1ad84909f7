"""Being told to stop: looked at between steps, at the same step by all."""

import os
import signal

import jax

from softmoe.process import jax_internals


class StopSignal:
  """Notes SIGTERM and SIGINT while it is in force.

  Alone, a process stops at the next step, and a second signal kills it. Of
  several, JAX's runtime notes SIGTERM sent to any, and agrees with all on a
  step that none has done yet; that takes no part of the devices' time.
  """

  def __init__(self):
    self._name = ''
    self._steps = 0
    self._previous = {}
    several = jax.process_count() > 1
    make = jax_internals.create_preemption_sync_manager
    self._shared = make() if several else None

  def __enter__(self) -> 'StopSignal':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._note)
    if self._shared:  # takes SIGTERM over; SIGINT is passed on to it
      self._shared.initialize(jax_internals.client())
    return self

  def __exit__(self, *_) -> None:
    if self._shared:
      self._shared.shutdown()
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def after_step(self) -> str:
    """Returns the signal's name if this step is the last, else nothing.

    To be called after every step, and by all processes alike.
    """
    self._steps += 1
    if self._shared is None:
      return self._name
    # Counted from 1 at every start: a process without a step yet counts as 0.
    stop = self._shared.reached_sync_point(self._steps)
    return (self._name or 'SIGTERM') if stop else ''

  def _note(self, number, frame) -> None:
    del frame
    self._name = signal.Signals(number).name
    if self._shared:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      for each in self._previous:
        signal.signal(each, signal.SIG_DFL)
