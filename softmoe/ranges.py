"""Which numbers a field of a config takes, written beside its type.

    ema: Annotated[float, Range(0, 1, without=1)] = 0.0
    blocks: tuple[Annotated[int, COUNT], ...] = ()

Both ends are given: past some size a number is a slip, and what computes with
it would end in an overflow instead of a line. The top ends here are far above
what anybody trains.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers from `low` to `high`.

  Attributes:
    low: the lower end.
    high: the upper end.
    without: an end that is left out; None: none is.
    off: whether 0, which means off, is taken beside them.
  """

  low: int | float
  high: int | float
  without: int | float | None = None
  off: bool = False

  def __contains__(self, value: Any) -> bool:
    if self.off and value == 0:
      return True
    return self.low <= value <= self.high and value != self.without

  def __str__(self) -> str:
    above = 'above' if self.without == self.low else 'at least'
    below = 'below' if self.without == self.high else 'at most'
    off = '0 or ' if self.off else ''
    return f'{off}{above} {self.low}, {below} {self.high}'


@dataclasses.dataclass(frozen=True)
class OneOf:
  """A few numbers."""

  numbers: tuple[int, ...]

  def __contains__(self, value: Any) -> bool:
    return value in self.numbers

  def __str__(self) -> str:
    return ' or '.join(map(str, self.numbers))


LARGE = 2**20
STEPS = 2**31 - 1  # a step is an int32

SIZE = Range(1, LARGE)
COUNT = Range(0, LARGE)  # 0: none, or as the field says
STEP = Range(1, STEPS)
STEP_OR_OFF = Range(0, STEPS)
DEPTH = Range(1, 10_000)
SHARE = Range(0, 1, without=1)  # of what is left out or forgotten
AMOUNT = Range(0, 1e6)
CAPACITY = Range(0.01, 1000, off=True)
