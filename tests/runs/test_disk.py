"""What is synced, in which order, and what a full disk leaves."""

import errno
import os
import pathlib

import pytest

from softmoe.errors import WriteFailed
from softmoe.runs import disk


@pytest.fixture
def calls(monkeypatch):
  """Returns the names of what is synced or renamed, as it happens."""
  calls, fsync, replace = [], os.fsync, pathlib.Path.replace

  def log_fsync(number):
    calls.append(('sync', pathlib.Path(f'/dev/fd/{number}').resolve().name))
    return fsync(number)

  def log_replace(path, target):
    calls.append(('rename', path.name, pathlib.Path(target).name))
    return replace(path, target)

  monkeypatch.setattr(os, 'fsync', log_fsync)
  monkeypatch.setattr(pathlib.Path, 'replace', log_replace)
  return calls


def test_a_file_is_on_disk_before_its_name_and_then_its_name(tmp_path, calls):
  directory = tmp_path / 'run'
  directory.mkdir()
  disk.write(directory / 'config.json', b'content')
  assert (directory / 'config.json').read_bytes() == b'content'
  assert calls == [
    ('sync', '.config.json'),
    ('rename', '.config.json', 'config.json'),
    ('sync', 'run'),
  ]


def test_a_log_is_on_disk_when_it_says_so(tmp_path, calls):
  log = disk.Log(tmp_path / 'metrics.jsonl')
  log.write(b'a line\n')
  assert (tmp_path / 'metrics.jsonl').read_bytes() == b'a line\n'
  assert calls == [('sync', tmp_path.name)]
  log.sync()
  assert calls[1:] == [('sync', 'metrics.jsonl')]
  log.close()


def test_what_is_set_aside_takes_no_name_from_another(tmp_path, calls):
  for content in ('first', 'second', 'third'):
    (tmp_path / '40').mkdir()
    (tmp_path / '40' / 'state').write_text(content)
    aside = disk.set_aside(tmp_path / '40', 'damaged')
    assert (aside / 'state').read_text() == content
    renamed = 'rename', '40', aside.name
    assert calls[-2:] == [renamed, ('sync', tmp_path.name)]
  names = {'40.damaged', '40.damaged2', '40.damaged3'}
  assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize('name', ['params.txt', '.params.txt'])
def test_a_link_is_replaced_not_written_through(tmp_path, name):
  (tmp_path / 'precious').write_bytes(b'precious')
  (tmp_path / name).symlink_to(tmp_path / 'precious')
  disk.write(tmp_path / 'params.txt', b'new')
  assert (tmp_path / 'precious').read_bytes() == b'precious'
  assert not (tmp_path / 'params.txt').is_symlink()
  assert (tmp_path / 'params.txt').read_bytes() == b'new'


class Full:
  """A file on a disk that takes so many bytes."""

  def __init__(self, size):
    self.content, self._size = b'', size

  def write(self, content):
    left = self._size - len(self.content)
    if not left:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    self.content += content[:left]
    return len(content[:left])


@pytest.mark.parametrize('size', [0, 3, 13])
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, size):
  log = disk.Log(tmp_path / 'metrics.jsonl')
  log._file.close()
  log._file = Full(size)
  with pytest.raises(WriteFailed, match=r'metrics.jsonl could not.*No space'):
    for _ in range(3):
      log.write(b'a line\n')
  assert log._file.content == (b'a line\n' * 2)[:size]


def test_a_directory_that_is_gone_is_one_error(tmp_path):
  with pytest.raises(WriteFailed, match='config.json could not be written: No'):
    disk.write(tmp_path / 'gone' / 'config.json', b'content')


def test_a_file_system_without_sync_of_directories_is_none_the_worse(
  tmp_path, monkeypatch
):
  def fsync(number):
    code = errno.EINVAL if os.path.isdir(f'/dev/fd/{number}') else errno.EIO
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(os, 'fsync', fsync)
  disk.sync(tmp_path)
  with pytest.raises(WriteFailed, match='Input/output error'):
    disk.write(tmp_path / 'config.json', b'content')
