"""Made-up verses as `diatheke` prints them."""

import json
import math

import pytest

from softmoe.data.prepare.corpora import bible
from softmoe.errors import UserError


def verses(word, books=30, chapters=2, number=12, shift=None):
  """Returns an answer whose verses have lengths of their own.

  Args:
    word: what a verse is made of.
    books: how many.
    chapters: of each book.
    number: of verses in each chapter.
    shift: the book whose verses are all one late.
  """
  lines = []
  for b in range(books):
    for c in range(1, chapters + 1):
      for v in range(1, number + 1):
        at = v + (b == shift)
        length = 3 + (at * 7 + b + c) % 5 * (at % 2) * 6
        said = ' '.join([f'{word}{b}x{c}x{at}', *[word] * length])
        lines.append(f'Book{b} {c}:{v}: <w n="1">{said}</w><l/>')
  return '\n'.join([*lines, '(module)'])


def test_markup_notes_and_titles():
  answer = '\n'.join(
    [
      'I Kings 1:2: <w a="b">Now</w><w c="d">he</w>, <note n="1">or she</note>'
      '<q>“went</q>”<l/>home.',
      '<title type="psalm">By <w>David</w>.</title> <l/>Psalms 3:1: Yahweh!',
      '<title type="psalm">By <w>David</w>.</title> <l/>Psalms 3:2: Many',
      '<title type="psalm">By <w>David</w>.</title> <l/>Psalms 4:1: Hear',
      '<title>The Law</title>Malachi 1:1: A word',
      '(module)',
    ]
  )
  assert list(bible.read(answer).items()) == [
    (('I Kings', 1, 2), 'Now he, “went” home.'),
    (('Psalms', 3, 1), 'By David. Yahweh!'),
    (('Psalms', 3, 2), 'Many'),
    (('Psalms', 4, 1), 'By David. Hear'),
    (('Malachi', 1, 1), 'A word'),
  ]


def test_a_chapter_that_is_divided_otherwise_is_lost():
  spanish = bible.read(verses('verso', shift=3))
  english = bible.read(verses('verse'))
  common, kept = bible.align(spanish, english)
  assert common == 30 * 2 * 12
  assert {place.book for place in spanish} - {p.book for p in kept} == {'Book3'}
  assert len(kept) == common - 2 * 12
  assert all(english[place] == texts[1] for place, texts in kept.items())


def test_a_window_is_cut_at_the_ends():
  assert bible._smooth([1.0, 2.0, 3.0, 6.0]) == [2, 3, 3, 11 / 3]
  assert math.isclose(bible._smooth([5.0])[0], 5)


def test_whole_books_are_held_out(tmp_path):
  answers = verses('verso'), verses('verse')
  made = bible.prepare(tmp_path / 'a', *answers, {'p': '1'})
  again = bible.prepare(tmp_path / 'b', *answers, {'p': '1'})
  manifest = (tmp_path / 'a' / 'manifest.json').read_text()
  assert json.loads(manifest) == made == again
  for split in ('train', 'val', 'test'):
    lines = (tmp_path / 'a' / f'{split}.es-en.tsv').read_text().splitlines()
    assert len(lines) == made['languages']['es']['pairs'][split] > 0
    books = {f'Book{line.split("x")[0][len("verso") :]}' for line in lines}
    if split == 'train':
      held_out = made['held_out']['val'] + made['held_out']['test']
      assert books.isdisjoint(held_out)
    else:
      assert books == set(made['held_out'][split])


def test_too_few_books_leave_nothing(tmp_path):
  answers = verses('verso', books=2), verses('verse', books=2)
  with pytest.raises(UserError, match='books of both translations: got 2'):
    bible.prepare(tmp_path / 'x' / 'out', *answers, {})
  assert not list((tmp_path / 'x').iterdir())
