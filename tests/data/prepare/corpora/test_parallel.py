import collections
import hashlib
import itertools

import pytest

from softmoe.data.prepare.corpora import markup, packages, parallel, parts, text
from softmoe.errors import UserError


def pair(source, target, document='a'):
  return parallel.Pair(document, source, target)


def test_text_is_one_line_of_composed_characters():
  assert text.clean(' a\u0308\t b\n\u200bc\u00ad') == 'ä b c'
  assert text.key('Open – File…') == text.key('open file')


def test_blocks_of_a_part_of_a_page():
  page = (
    '<p>before</p><div id="it"><h1 id="h"><a></a>Ti<b>tle</b></h1>'
    '<div><p id="p">a<br>b &amp; <img>c</p></div><script>no</script>'
    '<p id="e"></p></div><p>after</p>'
  )
  found = markup.blocks(page, markup.Scope(('id', 'it')))
  assert [block for block in found if block.id not in ('', 'it')] == [
    ('h1', 'h', 'Title'),
    ('p', 'p', 'a b & c'),
    ('p', 'e', ''),
  ]
  assert 'after' not in ''.join(block.text for block in found)


@pytest.mark.parametrize(
  'source, target, reason',
  [
    ('', 'Word', 'no words'),
    ('12', '12', 'no words'),
    ('Calc.', 'calc', 'untranslated'),
    (
      'Choose Format then Page Style and Seite',
      'Choose Format then Page Style and Page',
      'untranslated',
    ),
    ('ja', 'a very long sentence that cannot be so short', 'length'),
  ],
)
def test_what_is_no_translation_is_counted(source, target, reason):
  dropped = collections.Counter()
  good = [pair('Die Seite ist hier zu sehen', 'The page is here to see')] * 20
  assert parallel.clean([*good, pair(source, target)], dropped) == good
  assert dropped == {reason: 1}


def test_no_text_is_in_two_splits_in_any_language(tmp_path):
  pairs = {
    'de': [
      pair('Eins', 'One', 'train'),
      pair('eins!', 'one.', 'train'),
      pair('Zwei', 'Two', 'val'),
      pair('Drei', 'Three', 'test'),
    ],
    'ru': [
      pair('Два', 'Two', 'train'),
      pair('Один', 'one', 'test'),
      pair('Четыре', 'Four', 'test'),
    ],
  }
  made = parallel.write(tmp_path, {'data': 'x'}, pairs, lambda name: name)
  texts = {
    split: {
      text.key(side)
      for path in tmp_path.glob(f'{split}.*-en.tsv')
      for line in path.read_text(encoding='utf-8').splitlines()
      for side in line.split('\t')
    }
    for split in parts.SPLITS
  }
  assert texts['train'] == {'eins', 'one', 'два', 'two'}
  for a, b in itertools.combinations(parts.SPLITS, 2):
    assert texts[a].isdisjoint(texts[b])
  german, russian = made['languages']['de'], made['languages']['ru']
  assert german['pairs'] == {'train': 1, 'val': 0, 'test': 1}
  assert german['dropped'] == {'repeated': 1, 'val: in a split before': 1}
  assert russian['dropped'] == {'test: in a split before': 1}
  for name, digest in made['files'].items():
    content = (tmp_path / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest


def test_missing_packages_are_named_with_their_command(monkeypatch):
  monkeypatch.setattr(packages, '_query', lambda names: {'a': '1'})
  assert packages.versions(['a']) == {'a': '1'}
  with pytest.raises(UserError, match='b c not inst.*apt-get install b c;'):
    packages.versions(['c', 'a', 'b'])


def test_a_package_on_hold_is_installed(monkeypatch, tmp_path):
  rows = 'echo "a 1 ii "\necho "b 2-1 hi "\necho "c 3 rc "\necho "d  un "\n'
  command = tmp_path / 'dpkg-query'
  command.write_text(f'#!/bin/sh\n{rows}echo "e 4 iiR"\nexit 1\n')
  command.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path))
  assert packages._query([*'abcde']) == {'a': '1', 'b': '2-1'}


def test_a_system_without_packages_is_told(monkeypatch):
  monkeypatch.setenv('PATH', '')
  with pytest.raises(UserError, match="Debian's packages"):
    packages.versions(['a'])
