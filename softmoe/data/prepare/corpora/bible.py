"""The Bible in Spanish and English, verse by verse: `docs/corpora.md`.

Spanish is the Reina-Valera of 1909, English the World English Bible; both are
in the public domain.
"""

import collections
import math
import os
import re
import subprocess
from typing import Any, NamedTuple

from softmoe.data.prepare import chance, folder
from softmoe.data.prepare.corpora import packages, parallel
from softmoe.errors import UserError

_PACKAGES = ('diatheke', 'sword-text-sparv', 'sword-text-web')
_SPANISH, _ENGLISH = 'spaRV1909eb', 'engWEB2015eb'

_SHARE = 0.05  # of the verses, for each of val and test
_WINDOW = 2  # verses on either side of one
_ASTRAY = 0.25  # log of the ratio of lengths; chapters that agree have 0.1
_LOST = 0.25  # share of a chapter's verses that are astray

_TITLE = re.compile(r'<title\b[^>]*>(.*?)</title>')
_NOTE = re.compile(r'<note\b.*?</note>')
# Elements within a line; the others begin one.
_INLINE = re.compile(r'</?(w|q|seg|name|transChange|hi|foreign)\b[^>]*>')
_TAG = re.compile(r'<[^>]*>')
_VERSE = re.compile(r'\s*(?P<book>.+?) (?P<chapter>\d+):(?P<verse>\d+): ')
# The translations' tags of two words leave out the space between them.
_JOINED = '</w><w '


class Place(NamedTuple):
  """Where a verse stands."""

  book: str
  chapter: int
  verse: int


Verses = dict[Place, str]


def main(out: str) -> None:
  """Makes the corpus of this machine's packages, and says what is in it.

  Raises:
    UserError: a package is not installed, or `out` is not new.
  """
  versions = packages.versions(_PACKAGES)
  made = prepare(out, _ask(_SPANISH), _ask(_ENGLISH), versions)
  each = made['languages']['es']
  for split, number in each['pairs'].items():
    books = ', '.join(made['held_out'].get(split, ['all others']))
    print(f'{split}: {number:,} verses; {books}')
  print(f'dropped: {each["dropped"]}, not aligned: {made["not_aligned"]}')
  print(f'fingerprint: {made["fingerprint"]}')


def prepare(
  out: str | os.PathLike, spanish: str, english: str, versions: dict[str, str]
) -> dict[str, Any]:
  """Makes the corpus of what `diatheke` says of both translations.

  Returns:
    What `manifest.json` holds.

  Raises:
    UserError: `out` is not new, or they have too few books in common.
  """
  with folder.new_folder(out) as new:
    common, kept = align(read(spanish), read(english))
    held_out = hold_out([place.book for place in kept])
    about = {
      'data': 'bible-en-es',
      'format': 'parallel',
      'licence': 'public domain',
      'packages': versions,
      'held_out': held_out,
      'verses_of_both': common,
      'not_aligned': common - len(kept),
    }
    pairs = [parallel.Pair(place.book, *texts) for place, texts in kept.items()]
    split = {book: s for s, books in held_out.items() for book in books}
    return parallel.write(
      new, about, {'es': pairs}, lambda book: split.get(book, 'train')
    )


def read(answer: str) -> Verses:
  """Returns the verses of one translation, without markup and notes.

  A psalm's title, which English has apart, is put where it is first named: the
  Spanish has it in the verse.
  """
  verses: Verses = {}
  before = None
  for line in answer.splitlines():
    titles = ' '.join(_TITLE.findall(line))
    match = _VERSE.match(_plain(_TITLE.sub('', line)))
    if not match:
      continue
    place = Place(match['book'], int(match['chapter']), int(match['verse']))
    said = match.string[match.end() :]
    title = (place.book, place.chapter, titles)
    if place.book == 'Psalms' and title != before:
      said = f'{_plain(titles)} {said}'
    before = title
    verses.setdefault(place, ' '.join(said.split()))
  return verses


def align(
  spanish: Verses, english: Verses
) -> tuple[int, dict[Place, tuple[str, str]]]:
  """Returns how many verses both have, and those that say the same.

  The Spanish follows another division of some chapters, under the same
  numbers. A verse is astray where it and two on either side differ in length,
  by the mean of |log(English / Spanish / ratio of all)|, by more than 0.25; and
  a chapter is lost, with all of it, if a quarter of its verses is astray.
  """
  places = [p for p in spanish if spanish[p] and english.get(p)]
  if not places:
    return 0, {}
  sizes = {p: (len(spanish[p]), len(english[p])) for p in places}
  total = sum(size for size, _ in sizes.values())
  ratio = sum(size for _, size in sizes.values()) / total
  chapters = collections.defaultdict(list)
  for place in places:
    chapters[place[:2]].append(place)
  kept: list[Place] = []
  for chapter in chapters.values():
    apart = [abs(math.log(sizes[p][1] / sizes[p][0] / ratio)) for p in chapter]
    astray = [mean > _ASTRAY for mean in _smooth(apart)]
    if sum(astray) < _LOST * len(chapter):
      kept += [p for p, bad in zip(chapter, astray, strict=True) if not bad]
  return len(places), {
    place: (spanish[place], english[place]) for place in kept
  }


def hold_out(books: list[str]) -> dict[str, list[str]]:
  """Returns the books of `val` and `test`, given that of each verse.

  Books come in an order of chance, each that fits in a twentieth of the verses.

  Raises:
    UserError: there is none for each of them.
  """
  limit = _SHARE * len(books)
  sizes = collections.Counter(books)
  found: dict[str, list[str]] = {'val': [], 'test': []}
  for book in sorted(sizes, key=lambda name: chance.share(f'book {name}')):
    for chosen in found.values():
      if sum(sizes[each] for each in chosen) + sizes[book] <= limit:
        chosen.append(book)
        break
  if not all(found.values()):
    expected = 'more, so that some can be held out'
    raise UserError('books of both translations', len(sizes), expected)
  return found


def _ask(module: str) -> str:
  """Returns all verses of a translation, as `diatheke` prints them."""
  command = ['diatheke', '-b', module, '-k', 'Gen-Rev']
  return subprocess.run(command, capture_output=True, text=True).stdout


def _plain(marked: str) -> str:
  spaced = _NOTE.sub('', marked).replace(_JOINED, '</w> <w ')
  return _TAG.sub(' ', _INLINE.sub('', spaced))


def _smooth(values: list[float]) -> list[float]:
  """Returns the mean of each value and its neighbours."""
  windows = (
    values[max(i - _WINDOW, 0) : i + _WINDOW + 1] for i in range(len(values))
  )
  return [sum(window) / len(window) for window in windows]
