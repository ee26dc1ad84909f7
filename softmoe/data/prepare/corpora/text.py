"""Plain text: how it is written, and by what two texts are the same."""

import re
import unicodedata

_INVISIBLE = re.compile('[\u00ad\u200b\u200e\u200f\u2060\ufeff]')
_NO_WORD = re.compile(r'[\W_]+')


def clean(text: str) -> str:
  """Returns a text on one line: NFC, single spaces, nothing invisible."""
  composed = unicodedata.normalize('NFC', _INVISIBLE.sub('', text))
  return ' '.join(composed.split())


def key(text: str) -> str:
  """Returns what is the same for texts that differ in case and signs alone."""
  return _NO_WORD.sub('', unicodedata.normalize('NFKC', text).casefold())


def words(text: str) -> list[str]:
  """Returns the words of a text in lower case, as a set of signs splits it."""
  return [word for word in _NO_WORD.split(text.casefold()) if word]
