"""JSON lines: `jsonl:PATH`, a file, a folder of .jsonl files or a pattern.

A line is an object, whose string `text` is a document; blank lines are none.
See `paths.of_splits` for what a folder's splits are.
"""

import array
import dataclasses
import functools
import json
import pathlib

import numpy as np
from jaxtyping import Int64

from softmoe.data.text import documents, paths


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """The lines of files, found at first use and parsed when they are read."""

  files: list[pathlib.Path]

  def __len__(self) -> int:
    return sum(map(len, self._offsets))

  def __getitem__(self, index: int) -> str:
    number = int(np.searchsorted(self._ends, index, side='right'))
    # From the end of the file's lines, where a negative index counts from.
    offset = self._offsets[number][index - self._ends[number]]
    return _read(self.files[number], int(offset))

  @functools.cached_property
  def _offsets(self) -> list[Int64[np.ndarray, ' n']]:
    """Where the lines of each file begin."""
    return [_line_offsets(file) for file in self.files]

  @functools.cached_property
  def _ends(self) -> Int64[np.ndarray, ' f']:
    """How many lines there are up to the end of each file."""
    return np.cumsum([len(offsets) for offsets in self._offsets])


def open_splits(argument: str) -> dict[str, documents.Documents]:
  """Returns the documents of each split; opens no file.

  Raises:
    UserError: there are no such files.
  """
  found = paths.of_splits(argument, '.jsonl')
  return {name: JsonLines(files) for name, files in found.items()}


def _line_offsets(path: pathlib.Path) -> Int64[np.ndarray, ' n']:
  found, offset = array.array('q'), 0
  try:
    with path.open('rb') as file:
      for line in file:
        if not line.isspace():
          found.append(offset)
        offset += len(line)
  except OSError as error:
    expected = f'a file that can be read ({error.strerror})'
    raise documents.wrong(str(path), expected) from error
  if not found:
    raise documents.wrong(str(path), 'a file with a document')
  return np.array(found, np.int64)


def _read(path: pathlib.Path, offset: int) -> str:
  with path.open('rb') as file:
    file.seek(offset)
    line = file.readline()
  try:
    text = json.loads(line)['text']
    text.encode('utf-8')  # JSON can say half of a character: "\ud83d"
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    number = 1 + path.read_bytes()[:offset].count(b'\n')
    expected = "a JSON object with valid text as 'text'"
    reason = f'{type(error).__name__}: {error}'
    name = f'{path}, line {number}'
    raise documents.wrong(name, f'{expected} ({reason})') from error
  return text
