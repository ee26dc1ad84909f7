"""Axes: scales, round ticks, and the frame that they make."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from softmoe.tables.report.plots import svg
from softmoe.tables.report.plots.svg import WIDTH, Length

HEIGHT = 250
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 26, 42
_LETTER = 6.7  # the most that a digit takes of the width


@dataclasses.dataclass(frozen=True)
class Scale:
  """From values to places along an axis, which may be logarithmic."""

  low: Length
  high: Length
  start: Length
  end: Length
  log: bool = False

  def __call__(self, value: Length) -> float:
    """Returns the place of a value."""
    low, high, at = self.low, self.high, value
    if self.log:
      low, high, at = math.log(low), math.log(high), math.log(value)
    return self.start + (at - low) / (high - low) * (self.end - self.start)

  def clamp(self, value: Length) -> float:
    """Returns the place of a value, or the end that it lies beyond."""
    return self(min(max(value, self.low), self.high))

  def ticks(self) -> list[float]:
    """Returns round values between the ends, three to seven of them."""
    if self.log:
      for steps in ((1, 2, 5), (1, 3), (1,)):
        marks = [s * 10.0**e for e in range(-18, 19) for s in steps]
        inside = [m for m in marks if self.low <= m <= self.high]
        if 3 <= len(inside) <= 7:
          return inside
    return next(t for t in map(self._multiples, _steps(self)) if len(t) >= 3)

  def _multiples(self, step: float) -> list[float]:
    first, last = math.ceil(self.low / step), math.floor(self.high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _steps(scale: Scale) -> Iterable[float]:
  """Yields round steps, from one that is as long as the scale."""
  power = 10.0 ** math.ceil(math.log10(scale.high - scale.low))
  for exponent in (0, 1, 2):
    yield from (m * power / 10**exponent for m in (1, 0.5, 0.2))


def span(
  values: Sequence[Length],
  start: Length,
  end: Length,
  log: bool = False,
) -> Scale:
  """Returns a scale with some air around the values."""
  low, high = min(values), max(values)
  if log and low > 0:
    air = max((high / low) ** 0.08, 1.08)
    return Scale(low / air, high * air, start, end, True)
  air = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
  return Scale(low - air, high + air, start, end)


def around(
  seeds: Iterable[Length], ends: Iterable[Length], start: Length, end: Length
) -> Scale:
  """Returns a scale for seeds, and for ends of intervals as far as they help.

  With two seeds an interval is 13 times as wide as their spread: it may double
  the scale, no more, and is then cut at the frame.
  """
  seeds = list(seeds)
  low, high = min(seeds), max(seeds)
  air = (high - low) / 2 or abs(high) * 0.02 or 0.5
  inside = [min(max(v, low - air), high + air) for v in ends]
  return span([low, high, *inside], start, end)


def is_wide(values: Sequence[Length]) -> bool:
  """Tells whether positive values span so much that a logarithm helps."""
  return min(values) > 0 and max(values) > 3 * min(values)


def number(value: Length) -> str:
  """Returns a tick's words: '0.25', '5000', '1.5e4'."""
  if abs(value) < 10_000:
    return f'{value:.4g}'.replace('-', '−')
  digits, power = f'{value:.5e}'.split('e')
  return f'{float(digits):g}e{int(power)}'.replace('-', '−')


def frame(
  x_title: str, y_title: str, y: Scale, x_ticks: list[tuple[float, str]]
) -> Iterable[str]:
  """Yields a grid of the values of `y` above the words of `x_ticks`."""
  floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
  yield svg.text(2, 12, y_title, 'a', 'start')
  yield svg.text(right, HEIGHT - 5, x_title, 'a', 'end')
  for value in y.ticks():
    yield svg.line(LEFT, y(value), right, y(value), 'g')
    words = number(value)
    end = max(LEFT - 5, _LETTER * len(words))  # a long one begins at the edge
    yield svg.text(end, y(value) + 4, words, 't', 'end')
  yield svg.line(LEFT, floor, right, floor, 'x')
  crowded = any(
    3 * (len(one) + len(other)) + 4 > abs(end - start)
    for (start, one), (end, other) in itertools.pairwise(x_ticks)
  )
  for i, (place, words) in enumerate(x_ticks):
    yield svg.line(place, floor, place, floor + 3, 'x')
    yield svg.text(
      inside(place), floor + (24 if crowded and i % 2 else 14), words
    )


def inside(place: Length) -> Length:
  """Returns a place from which centred words do not leave the picture."""
  return min(max(place, 16), WIDTH - 16)
