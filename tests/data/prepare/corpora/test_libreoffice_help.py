"""Two languages of made-up pages."""

import hashlib
import json

import pytest

from softmoe.data.prepare.corpora import libreoffice_help
from softmoe.errors import UserError

PAGES = 100
NUMBERS = ('one', 'two', 'three', 'four', 'five', 'six')
WORDS = {'en-US': 'chapter of page', 'de': 'Kapitel der Seite', 'fr': 'Partie'}


def page(language, number, order=('a', 'b')):
  spelt = ' '.join(NUMBERS[int(digit) % 6] for digit in str(number))
  texts = {'a': f'{WORDS[language]} {number} {spelt}', 'b': 'Not translated'}
  body = ''.join(f'<p id="{key}">{texts[key]}</p>' for key in order)
  return f'<p>menu</p><div id="DisplayArea">{body}</div><p>bug</p>'


@pytest.fixture
def root(tmp_path):
  for language in WORDS:
    folder = tmp_path / 'help' / language / 'text' / 'guide'
    folder.mkdir(parents=True)
    for i in range(PAGES):
      (folder / f'{i}.html').write_text(page(language, i))
  # A page of another structure, and one that is not there.
  (folder / '0.html').write_text(page(language, 0, ('b', 'a')))
  (folder / '1.html').unlink()
  return tmp_path / 'help'


def make(root, out, processes=1):
  languages = libreoffice_help.installed(root)
  return libreoffice_help.prepare(out, root, languages, {'p': '1'}, processes)


def hashes(folder):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
  }


def test_paragraphs_of_pages_side_by_side(root, tmp_path):
  out = tmp_path / 'out'
  made = make(root, out)
  assert json.loads((out / 'manifest.json').read_text()) == made
  assert made['pages_of_another_structure'] == {'de': 0, 'fr': 2}
  german = made['languages']['de']
  assert german['dropped'] == {'untranslated': PAGES}
  assert sum(german['pairs'].values()) == PAGES
  assert sum(made['languages']['fr']['pairs'].values()) == PAGES - 2
  for split, number in german['pairs'].items():
    lines = (out / f'{split}.de-en.tsv').read_text().splitlines()
    assert len(lines) == number > 0
    for line in lines:
      source, target = line.split('\t')
      assert source.replace(WORDS['de'], WORDS['en-US']) == target
      name = f'text/guide/{target.split()[3]}.html'
      assert libreoffice_help.split_of(name) == split


@pytest.mark.slow
def test_processes_change_no_byte(root, tmp_path):
  make(root, tmp_path / 'a')
  make(root, tmp_path / 'b', processes=2)
  assert hashes(tmp_path / 'a') == hashes(tmp_path / 'b')


def test_macos_is_left_out():
  content = (
    '<div id="DisplayArea"><p>Press <span><span class="MAC">Command <b>x</b>'
    '</span><span>Ctrl</span></span>+A</p></div>'
  )
  assert [each.text for each in libreoffice_help.read(content)] == [
    'Press Ctrl+A'
  ]


def test_no_language_to_translate_from(tmp_path):
  (tmp_path / 'en-US' / 'text').mkdir(parents=True)
  with pytest.raises(UserError, match='apt-get install libreoffice-help-en-us'):
    libreoffice_help.installed(tmp_path)
