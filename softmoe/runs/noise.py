"""What Orbax and TensorStore print beside the error that they raise.

`quiet` keeps it from the terminal, so that a failed save is one line.
"""

import sys
import warnings
from typing import Any

from absl import logging


def quiet() -> None:
  """Hides what is said of a save that failed, and nothing else."""
  # Orbax logs each error several times, and raises it.
  logging.get_absl_logger().addFilter(
    lambda record: 'orbax' not in record.pathname or record.levelname != 'ERROR'
  )
  # What had not begun by then is told of as never awaited.
  warnings.filterwarnings('ignore', "coroutine 'OrbaxLayout", RuntimeWarning)
  # What had begun ends when the event loop that awaits it is closed.
  sys.unraisablehook = _Hook(sys.unraisablehook)


class _Hook:
  def __init__(self, others: Any):
    self._others = others

  def __call__(self, unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      self._others(unraisable)
