"""The paragraphs of a page of HTML."""

import html.parser
from typing import NamedTuple

_HTML = (
  'address article aside blockquote body caption center dd details div dl dt '
  'figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr li main ol p '
  'section summary table tbody td th thead tr ul'
)
_WITHOUT_END = 'area base br col embed hr img input link meta source track wbr'
_BLOCKS = frozenset(_HTML.split())
_VOID = frozenset(_WITHOUT_END.split())
HEADINGS = frozenset(('h1', 'h2', 'h3', 'h4', 'h5', 'h6'))


class Block(NamedTuple):
  """A piece of text with the element that it stands in, and that one's id."""

  tag: str
  id: str
  text: str


class Scope(NamedTuple):
  """Which part of a page is read.

  Attributes:
    within: an attribute and its value, of the element to read; empty for all.
    skipped: elements that are left out, by name, or by class as in `.toc`.
  """

  within: tuple[str, str] | tuple[()] = ()
  skipped: frozenset[str] = frozenset(('head', 'script', 'style'))


def blocks(page: str, scope: Scope) -> list[Block]:
  """Returns the pieces of text of a page, in its order, with their spaces.

  An element such as `p`, `li` or `td` that begins or ends also ends the piece
  before it. Pieces without text are there, too.
  """
  reader = _Reader(scope)
  reader.feed(page)
  reader.close()
  reader.flush()
  return reader.found


class _Reader(html.parser.HTMLParser):
  def __init__(self, scope: Scope):
    super().__init__()
    self.scope = scope
    self.found: list[Block] = []
    self._open = ('', '')  # tag and id of the piece
    self._texts: list[str] = []
    # Elements of one name that are open, from the first that matters.
    self._inside = _Depth('' if scope.within else '*')
    self._skipping = _Depth('')

  def flush(self) -> None:
    if self._open[0] or ''.join(self._texts).strip():
      self.found.append(Block(*self._open, ''.join(self._texts)))
    self._open, self._texts = ('', ''), []

  def handle_starttag(
    self, tag: str, attrs: list[tuple[str, str | None]]
  ) -> None:
    if tag in _VOID:
      self._texts.append(' ' if tag == 'br' else '')
      return
    named = {name: value or '' for name, value in attrs}
    self._skipping.start(tag, self._is_skipped(tag, named))
    within = self.scope.within
    self._inside.start(tag, bool(within) and within in named.items())
    if tag in _BLOCKS and self._reads():
      self.flush()
      self._open = tag, named.get('id', '')

  def handle_endtag(self, tag: str) -> None:
    if tag in _BLOCKS and self._reads():
      self.flush()
    self._skipping.end(tag)
    self._inside.end(tag)

  def handle_data(self, data: str) -> None:
    if self._reads():
      self._texts.append(data)

  def _reads(self) -> bool:
    return bool(self._inside.tag) and not self._skipping.tag

  def _is_skipped(self, tag: str, named: dict[str, str]) -> bool:
    classes = (f'.{name}' for name in named.get('class', '').split())
    return not self.scope.skipped.isdisjoint((tag, *classes))


class _Depth:
  """How many elements are open of the name of one that was looked for."""

  def __init__(self, tag: str):
    self.tag, self._depth = tag, 1

  def start(self, tag: str, wanted: bool) -> None:
    if not self.tag and wanted:
      self.tag, self._depth = tag, 1
    elif self.tag == tag:
      self._depth += 1

  def end(self, tag: str) -> None:
    if self.tag == tag:
      self._depth -= 1
      self.tag = self.tag if self._depth else ''
