"""The paragraphs of Perl's Plain Old Documentation: see `man perlpod`."""

import re

from softmoe.data.prepare.corpora import markup

_COMMAND = re.compile(
  r'=(?P<name>[a-z]+)(?P<level>[1-6]?)\s*(?P<text>.*)', re.S
)
# A code such as C<text> or C<< text >>, without another one in it.
_CODE = re.compile(
  r'(?P<code>[A-Z])(?:<<+\s(?P<wide>.*?)\s>>+|<(?P<text>[^<>]*)>)', re.S
)
_HIDDEN = frozenset('XZ')
_CHARACTERS = {'lt': '<', 'gt': '>', 'verbar': '|', 'sol': '/'}
_LEFT_OUT = frozenset(('begin', 'for', 'encoding'))


def blocks(content: str) -> list[markup.Block]:
  """Returns headings and paragraphs; text that is indented is code, and none.

  What follows `=for` or is between `=begin` and `=end` is for other formats.
  """
  found: list[markup.Block] = []
  outside = True
  for paragraph in re.split(r'\n[ \t]*\n', content):
    command = _COMMAND.match(paragraph.lstrip('\n'))
    name = command['name'] if command else ''
    if name in ('begin', 'end'):
      outside = name == 'end'
    elif command and outside and name not in _LEFT_OUT:
      tag = f'h{command["level"] or 4}' if name == 'head' else 'p'
      found.append(markup.Block(tag, '', _plain(command['text'])))
    elif not command and outside and not paragraph.lstrip('\n')[:1].isspace():
      found.append(markup.Block('p', '', _plain(paragraph)))
  return found


def _plain(text: str) -> str:
  """Returns a text without codes, from the innermost on."""
  before = None
  while text != before:
    before, text = text, _CODE.sub(_shown, text)
  return text


def _shown(match: re.Match[str]) -> str:
  code, text = match['code'], match['wide'] or match['text'] or ''
  if code in _HIDDEN:
    return ''
  if code == 'E':
    return _CHARACTERS.get(text, '')
  return text.partition('|')[0] if code == 'L' else text
