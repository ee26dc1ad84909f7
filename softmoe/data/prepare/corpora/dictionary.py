"""Pages of a dictionary in the format of `dictd`: entries one after another."""

import re

from softmoe.data.prepare.corpora import markup

_PAGE = 4_000  # characters
_ENTRY = re.compile(r'\n[ \t]*\n(?=\S)')  # what follows is not indented
_PARAGRAPH = re.compile(r'\n[ \t]*\n')
_ABOUT = '00-database'
# A letter with its accent, as in ['e]: the letter alone is read.
_ACCENT = re.compile(r'\[[\'`"^~=.,-]?([A-Za-z]{1,2})(?:um)?\^?\]')
# Pronunciation; sources, behind which the next word may stand; origins and
# marks such as [Obs.]; fields in <>; links to pages; dates of an entry.
_ASIDE = re.compile(
  r'\\[^\\\n]*\\,?'
  r'|\[[^][]*(?:Webster|WordNet)[^][]*\][^\n]*'
  r'|\[(?:[^][]*[.?]|PJC|Slang)\]'
  r'|<[\w ,/-]*>'
  r'|\{?\([a-z]+:/[^()]*\)\}?\.?'
  r'|\(\d{4}-\d\d-\d\d\)'
)
_LINK = re.compile(r'[{}]')


def pages(content: str) -> dict[str, list[markup.Block]]:
  """Returns pages of entries, as one would print them, by number and word.

  A page ends with the entry with which it reaches 4,000 characters, so that
  words of one root are mostly on one page. What tells of the dictionary itself
  is left out.
  """
  found: dict[str, list[markup.Block]] = {}
  page: list[str] = []
  entries = _ENTRY.split(content)
  for entry in entries:
    if entry.strip() and not entry.lstrip().startswith(_ABOUT):
      page.append(entry)
    if page and (entry is entries[-1] or sum(map(len, page)) >= _PAGE):
      name = f' {len(found)} {page[0].split()[0]}'
      found[name] = [block for each in page for block in _blocks(each)]
      page = []
  return found


def _blocks(entry: str) -> list[markup.Block]:
  """Returns an entry's paragraphs, a heading first where it has one."""
  plain = _ASIDE.sub('', _ACCENT.sub(r'\1', entry))
  first, *others = _PARAGRAPH.split(_LINK.sub('', plain))
  tag = 'p' if re.search(r'\n\s+\S', first) else 'h4'
  return [
    markup.Block(tag, '', first),
    *(markup.Block('p', '', other) for other in others),
  ]
