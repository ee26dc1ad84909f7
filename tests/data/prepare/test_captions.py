"""Captions of a few characters, from a made-up Unihan."""

import bz2
import hashlib
import json

import pytest

from softmoe.data.prepare import captions, characters
from softmoe.errors import UserError

READINGS = """# a comment
U+611B\tkDefinition\tlove, same as U+6200 戀 “dear”
U+611B\tkJapaneseOn\tAI
U+611B\tkJapaneseKun\tITOSHII AI
U+611B\tkMandarin\tài
U+58D3\tkCantonese\taat3
"""
STROKES = """U+611B\tkRSKangXi\t61.9
U+58D3\tkRSKangXi\t32.1 33.14
"""
SOURCES = """U+611B\tkRSUnicode\t61.9 87.9
U+58D3\tkRSUnicode\t33'.14
"""
SPLITS = {'train': '愛', 'test': '壓'}


def write(folder, **files):
  for name, text in files.items():
    path = folder / f'Unihan_{name}.txt.bz2'
    path.write_bytes(bz2.compress(text.encode()))


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / 'unicode'
  folder.mkdir()
  write(folder, Readings=READINGS, RadicalStrokeCounts=STROKES)
  write(folder, IRGSources=SOURCES)
  names = {32: 'EARTH', 61: 'HEART'}
  lines = (
    f'{0x2EFF + i:X};KANGXI RADICAL {names.get(i, i)};So;0\n'
    for i in range(1, 215)
  )
  text = '0041;LATIN CAPITAL LETTER A;Lu;0\n' + ''.join(lines)
  (folder / 'UnicodeData.txt').write_text(text)
  return folder


def make(root, out, splits=SPLITS):
  return captions.prepare(out, root, splits, {'unicode-data': '15'})


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_text_of_each_thing_and_one_of_all(root, tmp_path):
  out = tmp_path / 'out'
  made = make(root, out)
  assert json.loads((out / 'manifest.json').read_text()) == made
  parts = ['love, same as dear', 'read ai, itoshii']
  parts.append('radical heart, 9 more strokes')
  assert lines(out / 'train.jsonl') == [
    {'class': '愛', 'text': text} for text in (*parts, '; '.join(parts))
  ]
  # All that is known of it is one thing.
  text = 'radical earth, 1 more stroke'
  assert lines(out / 'test.jsonl') == [{'class': '壓', 'text': text}]
  assert made['splits']['train'] == {'characters': 1, 'texts': 4}
  content = (out / 'test.jsonl').read_bytes()
  assert made['files']['test.jsonl'] == hashlib.sha256(content).hexdigest()


def test_a_newer_unihan_has_the_strokes_in_another_field(root, tmp_path):
  write(root, RadicalStrokeCounts='U+611B\tkRSAdobe_Japan1_6\tC+1\n')
  make(root, tmp_path / 'out')
  texts = [line['text'] for line in lines(tmp_path / 'out' / 'train.jsonl')]
  assert texts[2] == 'radical heart, 9 more strokes'
  (only,) = lines(tmp_path / 'out' / 'test.jsonl')
  assert only['text'] == 'radical 33, 14 more strokes'


def test_the_same_files_give_the_same_bytes(root, tmp_path):
  first, second = (make(root, tmp_path / name) for name in 'ab')
  assert first == second


def remove(root):
  (root / 'UnicodeData.txt').unlink()


def cut(root):
  path = root / 'Unihan_Readings.txt.bz2'
  path.write_bytes(path.read_bytes()[:-20])


def shorten(root):
  (root / 'UnicodeData.txt').write_text('2F00;KANGXI RADICAL ONE;So;0\n')


@pytest.mark.parametrize(
  ('damage', 'line'),
  [
    (remove, 'No such file.*: apt-get install unicode-data'),
    (cut, 'apt-get install unicode-data'),
    (shorten, 'the names of all 214 radicals'),
  ],
)
def test_damage_is_one_line_and_leaves_nothing(root, tmp_path, damage, line):
  damage(root)
  with pytest.raises(UserError, match=line) as error:
    make(root, tmp_path / 'out')
  assert '\n' not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ['unicode']


def test_a_character_that_nothing_is_known_of(root, tmp_path):
  with pytest.raises(UserError, match=r"something of '亜', U\+4E9C"):
    make(root, tmp_path / 'out', {'train': '亜'})


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match='dpkg-query'):
    captions.main(str(tmp_path / 'out'))


def test_the_characters_are_those_of_the_glyphs():
  classes, others = characters.classes(), characters.others()
  assert (len(classes), len(others)) == (2965, 500)
  assert classes[0] == '亜' and not set(classes) & set(others)
