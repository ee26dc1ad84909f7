"""Texts of classes: JSON lines, each an object with `class` and `text`.

A class has as many lines as it has texts, anywhere in the files. What
`python -m softmoe.data.prepare captions DIR` makes is such a folder.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence

from softmoe.errors import UserError


def read(path: str, names: Sequence[str]) -> list[list[str]]:
  """Returns the texts of each class, in the order of the names.

  Args:
    path: a file, or a folder of `.jsonl` files.
    names: of the classes; others may have texts, too.

  Raises:
    UserError: a file is missing or damaged, or a class has no text.
  """
  found: dict[str, list[str]] = {name: [] for name in names}
  for file in _files(path):
    for number, line in enumerate(_read(file).splitlines(), 1):
      if line.strip():
        name, text = _parse(f'{file}, line {number}', line)
        if name in found:
          found[name].append(text)
  for name, texts in found.items():
    if not texts:
      raise _wrong(path, f'a text of every class; {name!r} has none')
  return [found[name] for name in names]


def fingerprint(path: str) -> str:
  """Returns a hash of the files.

  Raises:
    UserError: a file is missing.
  """
  digest = hashlib.sha256()
  for file in _files(path):
    digest.update(_read(file))
  return digest.hexdigest()


def _files(path: str) -> list[pathlib.Path]:
  found = pathlib.Path(path).expanduser()
  files = sorted(found.glob('*.jsonl')) if found.is_dir() else [found]
  if not files:
    raise _wrong(path, 'a folder with .jsonl files')
  return files


def _read(file: pathlib.Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    expected = f'a file that can be read ({error.strerror})'
    raise _wrong(str(file), expected) from error


def _parse(where: str, line: bytes) -> tuple[str, str]:
  try:
    item = json.loads(line)
    name, text = item['class'], item['text']
    for each in (name, text):
      each.encode('utf-8')  # JSON can say half of a character: "\ud83d"
    if text.strip():
      return name, text
    reason = 'the text is empty'
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    reason = f'{type(error).__name__}: {error}'
  expected = f"a JSON object with 'class' and 'text' ({reason})"
  raise _wrong(where, expected)


def _wrong(given: str, expected: str) -> UserError:
  return UserError('config.data.captions', given, expected)
