"""Made-up manuals."""

import gzip
import hashlib
import json

import pytest

from softmoe.data.prepare.corpora import (
  dictionary,
  english,
  manuals,
  markup,
  pod,
  prose,
)
from softmoe.data.prepare.corpora.prose import Piece
from softmoe.data.text import sources
from softmoe.errors import UserError

PAGES = 60
SHARED = 'This sentence is in every page of the manual, and is kept but once.'
DIGITS = 'zero one two three four five six seven eight nine'


def sentence(number, topic='page'):
  """Returns some 100 characters that no other number has."""
  spelt = ' '.join(DIGITS.split()[int(digit)] for digit in str(number))
  return (
    f'The {topic} with the number {spelt} says that all of it is about {spelt} '
    f'and that nothing else is of any use to {spelt}.'
  )


def page(number):
  body = ''.join(f'<p>{sentence(10 * number + i)}</p>' for i in range(3))
  return (
    f'<html><head><title>no</title></head><body><div class="toc">to skip, and '
    f'so is all of this</div><h1>Page {number}</h1>{body}<h2>All</h2>'
    f'<p>{SHARED}</p><pre>this is not to be read by any of you</pre></body>'
  )


def manual(folder, package='some-doc', suffix='.html'):
  return manuals.Manual(
    package, 'GPL-2', folder, suffix, manuals._html('.toc'), frozenset(('no',))
  )


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / 'manual'
  (root / 'no').mkdir(parents=True)
  (root / 'no' / 'x.html').write_text(page(999))
  for i in range(PAGES):
    (root / f'{i}.html').write_text(page(i))
  # One that only repeats, and one that says too little.
  (root / 'copy.html').write_text(page(0) + f'<p>{sentence(7, "copy")}</p>')
  (root / 'short.html').write_text(f'<p>{sentence(8, "short page")[:90]}</p>')
  return root


def make(out, folder, processes=1):
  return english.prepare(out, [manual(folder)], {'some-doc': '1'}, processes)


def hashes(folder):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
  }


def read(out, split):
  lines = (out / f'{split}.jsonl').read_text(encoding='utf-8').splitlines()
  return [json.loads(line) for line in lines]


def test_documents_are_divided_and_no_paragraph_is_there_twice(
  folder, tmp_path
):
  out = tmp_path / 'out'
  made = make(out, folder)
  assert json.loads((out / 'manifest.json').read_text()) == made
  found = {split: read(out, split) for split in ('train', 'val', 'test')}
  assert {each['source'] for part in found.values() for each in part} == {
    'some-doc'
  }
  paragraphs = []
  for split, part in found.items():
    assert len(part) == made['splits'][split]['documents'] > 0
    texts = [each['text'] for each in part]
    size = sum(len(text.encode()) for text in texts)
    assert size == made['splits'][split]['bytes']
    for text in texts:
      heading, *others = text.split('\n\n')
      document = english.Document(
        'some-doc', f'manual/{heading.removeprefix("Page ")}.html', []
      )
      assert english.split_of(document) == split
      paragraphs += [each for each in others if each != 'All']
  assert sorted(paragraphs) == sorted(
    [SHARED, *(sentence(10 * n + i) for n in range(PAGES) for i in range(3))]
  )
  counts = made['sources']['some-doc']
  assert (counts['dropped: repeated'], counts['dropped: short']) == (1, 1)
  # That of the copy and of each page but one.
  assert counts['paragraphs repeated'] == PAGES - 1 + 4


def test_a_document_that_is_dropped_leaves_its_paragraphs_to_others():
  train = english.Document('p', 'a', [Piece(sentence(i)) for i in (1, 2, 3)])
  copy = english.Document('p', 'b', [Piece(sentence(i)) for i in (1, 2, 3, 4)])
  late = english.Document('p', 'c', [Piece(sentence(i)) for i in (4, 5, 1)])
  seen, kept = set(), []
  for document in (train, copy, late):
    kept.append(
      english._take(document, seen, english.collections.Counter(), 'x')
    )
  assert kept == [train.pieces, [], late.pieces[:2]]


def test_it_can_be_read_as_a_source(folder, tmp_path):
  made = make(tmp_path / 'out', folder)
  name = f'jsonl:{tmp_path / "out"}'
  assert sources.split_names(name) == ['test', 'train', 'val']
  for split, each in made['splits'].items():
    assert len(sources.open_source(name, split)) == each['documents']


@pytest.mark.slow
def test_processes_change_no_byte(folder, tmp_path):
  make(tmp_path / 'a', folder)
  make(tmp_path / 'b', folder, processes=2)
  assert hashes(tmp_path / 'a') == hashes(tmp_path / 'b')


def test_a_folder_without_pages_is_named(folder, tmp_path):
  with pytest.raises(UserError, match=r'got .*manual.*some-doc.*\*.page'):
    chosen = [manual(folder, suffix='.page')]
    english.prepare(tmp_path / 'x' / 'out', chosen, {}, 1)
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
  'text, expected',
  [
    ('This is how a sentence looks (more or less).', True),
    ('Too short a one.', False),
    ('for (int i = 0; i < n; ++i) the_sum += a[i] * b[i];', False),
    ('Amsterdam Berlin Copenhagen Dublin Edinburgh Florence', False),
    ('see a_b to_c the_d in_e on_f or gh', False),
    ('Dies ist ein Satz und kein anderer', False),
  ],
)
def test_running_text(text, expected):
  assert prose.is_prose(text) == expected


def test_a_heading_of_nothing_is_left_out():
  long = sentence(1)
  blocks = [
    markup.Block('h1', '', 'One'),
    markup.Block('h2', '', 'Two'),
    markup.Block('p', '', 'x = y'),
    markup.Block('h2', '', 'Three'),
    markup.Block('p', '', f' {long}\n'),
    markup.Block('h2', '', 'Four'),
  ]
  assert prose.headed(prose.pieces(blocks)) == [
    Piece('One', 1),
    Piece('Three', 2),
    Piece(long),
  ]


def test_plain_old_documentation():
  content = (
    '=encoding utf8\n\n=head1 NAME\nX<a> X<b>\n\nthe I<B<very> one>, '
    'C<< a->b >> and L<it|perlsub>E<lt>\n\n    code();\n\n=over 4\n\n'
    '=item * one\n\n=back\n\n=begin html\n\nhidden\n\n=end html\n\nlast\n'
  )
  assert [(tag, text.strip()) for tag, _, text in pod.blocks(content)] == [
    ('h1', 'NAME'),
    ('p', 'the very one, a->b and it<'),
    ('p', '4'),
    ('p', '* one'),
    ('p', ''),
    ('p', 'last'),
  ]


def test_pages_of_a_dictionary(monkeypatch):
  monkeypatch.setattr(dictionary, '_PAGE', 60)
  content = (
    '00-database-info\n   about it\n\n'
    "Caf['e] \\Ca`f['e]\"\\, n. [F. caf['e]. See {Coffee}.]\n"
    '   A {coffeehouse}. [Obs.]\n   [1913 Webster] Cage\n\n'
    '      "[The] cup" --Pope.\n      [1913 Webster]\n\n'
    'Cage\nCages\n\n   <jargon> A place. {(http://a.b/)}.\n\n   (1999-07-17)\n'
  )
  found = dictionary.pages(content)
  assert list(found) == [" 0 Caf['e]", ' 1 Cage']
  plain = [
    [(tag, ' '.join(text.split())) for tag, _, text in page]
    for page in found.values()
  ]
  assert plain == [
    [('p', 'Cafe n. A coffeehouse.'), ('p', '"[The] cup" --Pope.')],
    [('h4', 'Cage Cages'), ('p', 'A place.'), ('p', '')],
  ]


def test_packed_files_and_titles_of_mallard(tmp_path):
  packed = tmp_path / 'd' / 'some.dict.dz'
  packed.parent.mkdir()
  packed.write_bytes(gzip.compress(b'Word\n\n   Said.\n'))
  one = manuals.Manual('p', 'l', packed.parent, '.dz', dictionary.pages)
  assert list(manuals.documents(one, packed)) == ['d/some.dict.dz 0 Word']
  packed.write_bytes(packed.read_bytes()[:-6])
  with pytest.raises(UserError, match='some.dict.dz.*of p, undamaged: install'):
    manuals.documents(one, packed)
  found = manuals._mallard(
    '<page><info><desc>no</desc></info><title>Use <gui>it</gui></title>'
    '<p>Press <link xref="a">A</link> or <link xref="b"/>B.</p></page>'
  )['']
  assert [(each.tag, each.text) for each in found if each.text.strip()] == [
    ('h2', 'Use it'),
    ('p', 'Press A or B.'),
  ]
