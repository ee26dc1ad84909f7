"""Pairs from files: splits, languages, and files that do not fit."""

import pytest

from softmoe.data.text import parallel
from softmoe.errors import UserError

LINES = [f'quelle {i}\tsource {i}\n' for i in range(10)]


def write(path, text):
  path.write_text(text, encoding='utf-8')
  return path


def test_table_is_mixed_and_sliced(tmp_path):
  path = write(tmp_path / 'x.tsv', ''.join(LINES))
  whole = parallel.open_pairs(f'parallel:{path}', 'train')
  assert sorted(zip(whole.sources, whole.targets, strict=True)) == sorted(
    tuple(line.strip().split('\t')) for line in LINES
  )
  assert whole.sources != sorted(whole.sources)
  first = parallel.open_pairs(f'parallel:{path}', 'train[:3]')
  rest = parallel.open_pairs(f'parallel:{path}', 'train[3:]')
  assert [*first.sources, *rest.sources] == whole.sources


def test_two_files(tmp_path):
  a = write(tmp_path / 'a', 'eins\nzwei\u2028drei\n')
  b = write(tmp_path / 'b', 'one\r\ntwo three')
  pairs = parallel.open_pairs(f'parallel:{a},{b}', 'train')
  assert sorted(zip(pairs.sources, pairs.targets, strict=True)) == [
    ('eins', 'one'),
    ('zwei\u2028drei', 'two three'),
  ]


def test_folder_of_languages(tmp_path):
  write(tmp_path / 'train.de-en.tsv', ''.join(LINES))
  write(tmp_path / 'train.zh-CN-en.tsv', '一\tone\n')
  write(tmp_path / 'test.de-en.tsv', LINES[0])
  name = f'parallel:{tmp_path}'
  pairs = parallel.open_pairs(name, 'train')
  assert len(pairs) == 11
  assert pairs.languages[pairs.sources.index('一')] == 'zh-CN'
  assert set(pairs.languages) == {'de', 'zh-CN'}
  assert parallel.open_pairs(name, 'test').languages == ['de']
  with pytest.raises(
    UserError, match=r"'val'; the source has \['test', 'train"
  ):
    parallel.open_pairs(name, 'val')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'this one is empty'),
    (b'a\tb\nno tab\n', 'one tab in each line; line 2 has 0'),
    (b'a\tb\tc\n', 'one tab in each line; line 1 has 2'),
    (b'a\t\xff\n', 'valid UTF-8'),
  ],
)
def test_bad_tables(tmp_path, content, message):
  path = tmp_path / 'x.tsv'
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as e:
    parallel.open_pairs(f'parallel:{path}', 'train')
  assert str(path) in str(e.value)


def test_bad_names(tmp_path):
  a, b = write(tmp_path / 'a', 'x\ny\n'), write(tmp_path / 'b', 'x\n')
  for name, message in (
    (f'parallel:{a},{b}', rf'{a} has 2, {b} has 1'),
    (f'parallel:{tmp_path}/none.tsv', 'can be read'),
    (f'parallel:{tmp_path}', 'a folder with SPLIT.tsv files'),
    ('parallel:', "'parallel:PATH' or"),
    ('pairs:x', "'parallel:PATH' or"),
  ):
    with pytest.raises(UserError, match=message):
      parallel.open_pairs(name, 'train')
  with pytest.raises(UserError, match=r"the source has \['train'\]"):
    parallel.open_pairs(f'parallel:{a}', 'test')
