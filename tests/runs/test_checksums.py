"""No bit of a file can flip, and no file go, without being named."""

import random

import pytest

from softmoe.runs import checksums


@pytest.fixture
def files(tmp_path):
  """Returns a directory of files with their checksums."""
  chance = random.Random(0)
  for name, size in {'a': 0, 'b/c': 100, 'b/d/e': 3 * 2**20 + 1}.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(chance.randbytes(size))
  return tmp_path, checksums.of(tmp_path, checksums.names(tmp_path))


def test_all_files_are_listed_but_the_list(files):
  directory, sums = files
  (directory / checksums.FILE).write_text('{}')
  (directory / 'b' / checksums.FILE).write_text('not that of the directory')
  names = checksums.names(directory)
  assert names == ['a', 'b/c', f'b/{checksums.FILE}', 'b/d/e']
  assert sums['a'][0] == 0 and sums['b/d/e'][0] == 3 * 2**20 + 1
  assert checksums.differing(directory, sums) == []


def test_any_bit_that_flips_is_found(files):
  directory, sums = files
  chance = random.Random(1)
  for name in ('b/c', 'b/d/e'):
    content = bytearray((directory / name).read_bytes())
    for _ in range(20):
      where, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
      content[where] ^= bit
      (directory / name).write_bytes(content)
      assert checksums.differing(directory, sums) == [name]
      content[where] ^= bit
    (directory / name).write_bytes(content)
  assert checksums.differing(directory, sums) == []


def test_a_file_that_is_gone_or_of_another_length_is_found(files):
  directory, sums = files
  (directory / 'a').write_bytes(b'\0')
  (directory / 'b/c').unlink()
  assert checksums.differing(directory, sums) == ['a', 'b/c']


def test_a_list_that_is_missing_is_none_and_a_damaged_one_an_error(tmp_path):
  assert checksums.read(tmp_path) is None
  for content in ('{"a": [1, ', '[]', '\xff'):
    (tmp_path / checksums.FILE).write_bytes(content.encode('latin-1'))
    with pytest.raises(ValueError):
      checksums.read(tmp_path)
