"""The small alphabet of all plots: markers, lines, words, pictures.

Lengths are in units of a `viewBox` that is as wide as a phone, so that letters
keep their size there. Colours are classes, which the page's style sheet fills
in for light and for dark.
"""

import dataclasses
import html
from collections.abc import Iterable

WIDTH = 360

Length = int | float

COLOURS = 7  # the style sheet has as many; 0 is the baseline's
_SHAPES = (
  'M0,-5.2L5.2,0L0,5.2L-5.2,0z',  # diamond, of the baseline
  'M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z',  # circle
  'M-3.7,-3.7h7.4v7.4h-7.4z',  # square
  'M0,-4.8L4.8,3.8H-4.8z',  # triangle
  'M0,4.8L4.8,-3.8H-4.8z',  # triangle, upside down
  'M-1.6,-4.8h3.2v3.2h3.2v3.2h-3.2v3.2h-3.2v-3.2h-3.2v-3.2h3.2z',  # plus
  'M-4.6,-2.4L0,-5.2L4.6,-2.4V2.4L0,5.2L-4.6,2.4z',  # hexagon
  'M0,-5.4L1.6,-1.6L5.4,0L1.6,1.6L0,5.4L-1.6,1.6L-5.4,0L-1.6,-1.6z',  # star
)


@dataclasses.dataclass(frozen=True)
class Style:
  """Colour and shape, each of which tells models apart without the other."""

  colour: int
  shape: int

  @classmethod
  def of(cls, index: int) -> 'Style':
    """Returns the style of the model of that number, from 0."""
    shapes = len(_SHAPES) - 1
    return cls(1 + index % (COLOURS - 1), 1 + index % shapes)

  @classmethod
  def of_baseline(cls) -> 'Style':
    """Returns the style of what the others are held against."""
    return cls(0, 0)

  def marker(self, x: Length, y: Length, size: Length = 1.0) -> str:
    """Returns the marker at a place."""
    place = f'translate({x:.1f} {y:.1f}) scale({size:g})'
    return (
      f'<path class="m c{self.colour}" transform="{place}" '
      f'd="{_SHAPES[self.shape]}"/>'
    )


def text(
  x: Length, y: Length, words: str, kind: str = 't', anchor: str = 'middle'
) -> str:
  """Returns words at a place."""
  place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
  return f'<text class="{kind}" {place}>{html.escape(words)}</text>'


def line(x1: Length, y1: Length, x2: Length, y2: Length, kind: str) -> str:
  """Returns a straight line."""
  ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
  return f'<line class="{kind}" {ends}/>'


def path(
  points: Iterable[tuple[Length, Length]], kind: str, tip: str = ''
) -> str:
  """Returns a line through points."""
  places = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
  title = f'<title>{html.escape(tip)}</title>' if tip else ''
  return f'<polyline class="{kind}" points="{places}">{title}</polyline>'


def tipped(tip: str, inside: str, link: str = '', kind: str = 'pt') -> str:
  """Returns marks that tell something when they are touched."""
  where = f' data-link="#{html.escape(link)}"' if link else ''
  title = f'<title>{html.escape(tip)}</title>'
  return f'<g class="{kind}" tabindex="0"{where}>{title}{inside}</g>'


def target(x: Length, y: Length, radius: Length = 9) -> str:
  """Returns an invisible disc, so that a finger finds a point."""
  return f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def document(height: Length, label: str, inside: Iterable[str]) -> str:
  """Returns the whole picture."""
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
    f'role="img" aria-label="{html.escape(label)}">{"".join(inside)}</svg>'
  )


def legend_marker(style: Style) -> str:
  """Returns a marker on its own, for a legend."""
  inside = style.marker(7, 7)
  return (
    f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{inside}</svg>'
  )
