import json
import pathlib
import re
import sysconfig

import pytest

from softmoe.data.text import sources
from softmoe.errors import UserError


def _texts(name, split='train'):
  source = sources.open_source(name, split)
  return [source[i] for i in range(len(source))]


def _write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(content)
  return path


def _lines(*texts):
  return ''.join(json.dumps({'text': text}) + '\n' for text in texts)


def test_unknown_source_lists_the_known():
  with pytest.raises(UserError, match="got 'book'.*'jsonl'.*'tokens'"):
    sources.open_source('book', 'train')


def test_a_file_is_a_document_as_it_is(tmp_path):
  path = _write(tmp_path / 'a.txt', 'é\r\n\n\ufeff end ')
  assert _texts(f'text:{path}') == ['é\r\n\n\ufeff end ']


def test_a_folder_is_all_below_it_in_a_fixed_order(tmp_path):
  for name in ('b', 'a/c.txt', 'a/d.md', 'e'):
    _write(tmp_path / name, name)
  _write(tmp_path / '.git/config', 'hidden')
  _write(tmp_path / 'a/.hidden', 'hidden')
  found = _texts(f'text:{tmp_path}')
  assert sorted(found) == ['a/c.txt', 'a/d.md', 'b', 'e']
  halves = [_texts(f'text:{tmp_path}', s) for s in ('train[:50%]', 'train[2:]')]
  assert halves[0] + halves[1] == found == _texts(f'text:{tmp_path}')


def test_links_to_folders_are_followed_and_may_form_a_circle(tmp_path):
  _write(tmp_path / 'disk/a/1', 'one')
  _write(tmp_path / 'disk/b/2', 'two')
  _write(tmp_path / 'data/3', 'three')
  (tmp_path / 'data/linked').symlink_to(tmp_path / 'disk')
  (tmp_path / 'data/again').symlink_to(tmp_path / 'disk/a')
  (tmp_path / 'disk/a/back').symlink_to(tmp_path / 'disk/b')
  (tmp_path / 'disk/b/back').symlink_to(tmp_path / 'data')
  assert sorted(_texts(f'text:{tmp_path}/data')) == ['one', 'three', 'two']


def test_a_pattern(tmp_path):
  for name in ('a/1.txt', 'a/b/2.txt', 'a/3.md'):
    _write(tmp_path / name, name)
  assert sorted(_texts(f'text:{tmp_path}/**/*.txt')) == ['a/1.txt', 'a/b/2.txt']


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
  path = _write(tmp_path / 'a[1].txt', 'one')
  assert _texts(f'text:{path}') == ['one']


def test_a_folder_names_its_splits(tmp_path):
  _write(tmp_path / 'train/x/1', 'one')
  _write(tmp_path / 'train/2', 'two')
  _write(tmp_path / 'test.txt', 'three')
  _write(tmp_path / 'README.md', 'of no split')
  assert sorted(_texts(f'text:{tmp_path}')) == ['one', 'two']
  assert _texts(f'text:{tmp_path}', 'test') == ['three']
  assert sources.split_names(f'text:{tmp_path}') == ['test', 'train']
  with pytest.raises(UserError, match=r"'validation'; .*\['test', 'train'\]"):
    _texts(f'text:{tmp_path}', 'validation')


def test_json_lines(tmp_path):
  _write(tmp_path / 'b.jsonl', _lines('one\n', '') + ' \n\n' + _lines('二'))
  last = json.dumps({'id': 3, 'text': 'no newline behind'})
  _write(tmp_path / 'a.jsonl', last)
  _write(tmp_path / 'readme.txt', 'no lines')
  expected = ['', 'no newline behind', 'one\n', '二']
  assert sorted(_texts(f'jsonl:{tmp_path}')) == expected
  assert sorted(_texts(f'jsonl:{tmp_path}/*.jsonl')) == expected
  assert _texts(f'jsonl:{tmp_path}/a.jsonl') == expected[1:2]


def test_json_lines_are_found_across_files(tmp_path):
  for file in range(3):
    texts = [f'{file} {line}' for line in range(5 * file + 1)]
    _write(tmp_path / f'{file}.jsonl', _lines(*texts))
  found = _texts(f'jsonl:{tmp_path}')
  assert len(set(found)) == len(found) == 18
  assert '2 10' in found


def test_the_standard_library():
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  train, held_out = (
    _texts('stdlib', s) for s in ('train[:90%]', 'train[90%:]')
  )
  assert (root / 'json/decoder.py').read_text() in train + held_out
  assert len(train) > 400
  assert not set(train) & set(held_out)
  with pytest.raises(UserError, match="'stdlib', without argument"):
    _texts('stdlib:3.11')
  with pytest.raises(UserError, match=r"\['train'\]"):
    _texts('stdlib', 'test')


@pytest.mark.parametrize('kind', ['text', 'jsonl'])
@pytest.mark.parametrize('name', ['', 'missing', '*.none', 'empty'])
def test_no_such_files(tmp_path, monkeypatch, kind, name):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=re.escape(f'got {name!r}; a file, or a')):
    _texts(f'{kind}:{name}')


@pytest.mark.parametrize(
  'content, expected',
  [(b'', 'not empty'), (b'\xff', 'valid UTF-8'), (b'\xc3', 'valid UTF-8')],
)
def test_a_wrong_text_file_is_named(tmp_path, content, expected):
  _write(tmp_path / 'wrong.txt', content)
  with pytest.raises(UserError, match=f'wrong.txt.*{expected}'):
    _texts(f'text:{tmp_path}')


@pytest.mark.parametrize(
  'line',
  [
    b'{"text": 1}',
    b'{"texts": ""}',
    b'["text"]',
    b'"text"',
    b'{"text": "',
    b'{"text": "\\ud83d"}',
    b'{"text": "\xff"}',
    b'null',
  ],
)
def test_a_wrong_line_is_named(tmp_path, line):
  path = _write(tmp_path / 'a.jsonl', _lines('good').encode() + b'\n' + line)
  expected = r"a.jsonl, line 3'; a JSON object with valid text as 'text'"
  with pytest.raises(UserError, match=expected):
    _texts(f'jsonl:{path}')


def test_a_file_without_a_line_is_named(tmp_path):
  path = _write(tmp_path / 'a.jsonl', ' \n\n')
  with pytest.raises(UserError, match='a.jsonl.*with a document'):
    _texts(f'jsonl:{path}')


def test_a_file_that_is_gone_is_named(tmp_path):
  path = _write(tmp_path / 'a.txt', 'text')
  source = sources.open_source(f'text:{path}', 'train')
  path.unlink()
  with pytest.raises(UserError, match='a.txt.*a file that can be read'):
    source[0]
