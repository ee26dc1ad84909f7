"""What of a page is running text in English."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from softmoe.data.prepare.corpora import markup, text

_WORDS = 5  # that a paragraph has at least
_LETTERS = 0.85  # of its characters are letters or spaces
_PLAIN = 0.6  # of its words are but letters, signs around them aside

# Words that hardly a sentence does without, and names and code do.
_COMMON = (
  'a all an and any are as at be been but by can do for from has have if in is '
  'it its may must no not of on one only or should so such than that the their '
  'then there these they this to use used was when where which who will with '
  'you your'
)
_COMMON_WORDS = frozenset(_COMMON.split())
_EDGES = re.compile(r'^\W+|\W+$')


class Piece(NamedTuple):
  """A paragraph, or a heading and its level from 1 on; a paragraph's is 0."""

  text: str
  level: int = 0


def pieces(blocks: Iterable[markup.Block]) -> list[Piece]:
  """Returns the headings of a page, and its paragraphs of running text.

  Each is on one line. See `is_prose` for what is left out.
  """
  found = []
  for tag, _, marked in blocks:
    level = _level(tag)
    plain = text.clean(marked)
    if is_prose(plain) if not level else plain:
      found.append(Piece(plain, level))
  return found


def is_prose(plain: str) -> bool:
  """Says whether a text of one line is English, and no code, list or table.

  It has 5 words or more, and one of the commonest; 0.85 of its characters are
  letters or spaces; and 0.6 of its words have letters alone.
  """
  words = [_EDGES.sub('', word) for word in plain.split()]
  letters = sum(c.isalpha() or c == ' ' for c in plain)
  return (
    len(words) >= _WORDS
    and letters >= _LETTERS * len(plain)
    and sum(map(str.isalpha, words)) >= _PLAIN * len(words)
    and not _COMMON_WORDS.isdisjoint(map(str.lower, words))
  )


def headed(found: Iterable[Piece]) -> list[Piece]:
  """Returns the pieces without headings of nothing.

  A heading is followed by a paragraph, or by a heading of a lower level.
  """
  kept: list[Piece] = []
  for piece in reversed(list(found)):
    after = kept[-1].level if kept else 1
    if not piece.level or not after or piece.level < after:
      kept.append(piece)
  return kept[::-1]


def size(found: Iterable[Piece]) -> int:
  """Returns how many characters the paragraphs have."""
  return sum(len(piece.text) for piece in found if not piece.level)


def _level(tag: str) -> int:
  """Returns the level of a heading, or 0."""
  return int(tag[1]) if tag in markup.HEADINGS else 0
