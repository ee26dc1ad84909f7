"""What Unicode says of the characters of the glyphs: `docs/contrastive.md`.

Unihan, in Debian's package `unicode-data`, has an English definition of most
characters, Japanese readings, the radical and the strokes beside it. Of each
character there are a text of each, and one of all together.
"""

import bz2
import json
import os
import pathlib
import re
from typing import Any

from softmoe.data.prepare import characters, folder
from softmoe.data.prepare.corpora import manifest, packages
from softmoe.errors import UserError

_ROOT = pathlib.Path('/usr/share/unicode')
_PACKAGE = 'unicode-data'
_LICENCE = 'Unicode Data Files and Software License'
_UNIHAN = tuple(
  f'Unihan_{name}.txt.bz2'
  for name in ('Readings', 'RadicalStrokeCounts', 'IRGSources')
)
_NAMES = 'UnicodeData.txt'
_RADICAL, _RADICALS = 'KANGXI RADICAL ', 214
# Another character that a definition names, by its number and as it is.
_REFERENCE = re.compile(r' ?U\+[0-9A-F]{4,5}')

Fields = dict[str, str]


def main(out: str) -> None:
  """Makes the captions of this machine's Unihan, and says what is in them.

  Raises:
    UserError: the package is not installed; see `prepare`.
  """
  splits = {'train': characters.classes(), 'test': characters.others()}
  made = prepare(out, _ROOT, splits, packages.versions([_PACKAGE]))
  for name, split in made['splits'].items():
    print(f'{name}: {split["texts"]:,} of {split["characters"]:,} characters')
  print(f'fingerprint: {made["fingerprint"]}')


def prepare(
  out: str | os.PathLike,
  root: pathlib.Path,
  splits: dict[str, str],
  versions: dict[str, str],
) -> dict[str, Any]:
  """Writes the captions of some characters, `SPLIT.jsonl`.

  Args:
    out: the new folder.
    root: with the files of Unihan, and `UnicodeData.txt`.
    splits: the characters of each.
    versions: of the packages, for the manifest.

  Returns:
    What `manifest.json` holds.

  Raises:
    UserError: `out` is not new, a file is missing or damaged, or it knows
      nothing of a character.
  """
  with folder.new_folder(out) as new:
    radicals, known = _radicals(root), _unihan(root, ''.join(splits.values()))
    counts = {}
    for name, each in splits.items():
      texts = {c: captions(known[c], radicals) for c in each}
      for c in each:
        if not texts[c]:
          expected = f'files with something of {c!r}, U+{ord(c):04X}'
          raise UserError('Unihan', str(root), expected)
      _write(new / f'{name}.jsonl', texts)
      number = sum(map(len, texts.values()))
      counts[name] = {'characters': len(each), 'texts': number}
    about = {
      'data': 'captions',
      'licence': _LICENCE,
      'packages': versions,
      'splits': counts,
    }
    return manifest.write(new, about)


def captions(fields: Fields, radicals: dict[int, str]) -> list[str]:
  """Returns the texts of a character: of each thing known, then of all.

  Args:
    fields: those of Unihan, by name.
    radicals: the name of each, by number.
  """
  parts = [
    _ascii(fields.get('kDefinition', '')),
    _readings(fields),
    _form(fields, radicals),
  ]
  parts = [part for part in parts if part]
  return [*parts, '; '.join(parts)] if len(parts) > 1 else parts


def _readings(fields: Fields) -> str:
  """Returns Chinese readings, then native ones, as Japanese has them."""
  names = ('kJapaneseOn', 'kJapaneseKun')
  found = [each for n in names for each in fields.get(n, '').lower().split()]
  return 'read ' + ', '.join(dict.fromkeys(found)) if found else ''


def _form(fields: Fields, radicals: dict[int, str]) -> str:
  """Returns the radical, and the strokes that the rest of it has."""
  # Unicode 15.1 dropped kRSKangXi; kRSUnicode marks simplified radicals: 199'.
  given = fields.get('kRSKangXi') or fields.get('kRSUnicode', '')
  found = re.match(r"(\d+)'*\.(\d+)", given)
  if not found:
    return ''
  radical, strokes = map(int, found.groups())
  many = 'stroke' if strokes == 1 else 'strokes'
  return f'radical {radicals[radical]}, {strokes} more {many}'


def _ascii(text: str) -> str:
  """Returns English without the characters that it speaks of."""
  plain = _REFERENCE.sub('', text).encode('ascii', 'ignore').decode()
  return re.sub(r' +([,;)]|$)', r'\1', ' '.join(plain.split()))


def _radicals(root: pathlib.Path) -> dict[int, str]:
  rows = (line.split(';') for line in _lines(root / _NAMES))
  names = [row[1] for row in rows if len(row) > 1]
  found = [name for name in names if name.startswith(_RADICAL)]
  if len(found) < _RADICALS:
    expected = f'a file with the names of all {_RADICALS} radicals'
    raise UserError('Unihan', str(root / _NAMES), expected)
  return {
    number: name.removeprefix(_RADICAL).lower()
    for number, name in enumerate(found, 1)
  }


def _unihan(root: pathlib.Path, wanted: str) -> dict[str, Fields]:
  """Returns the fields of each of the wanted characters."""
  found: dict[str, Fields] = {character: {} for character in wanted}
  for name in _UNIHAN:
    for line in _lines(root / name):
      if line.startswith('U+') and line.count('\t') == 2:
        code, field, value = line.split('\t')
        character = chr(int(code[2:], 16))
        if character in found:
          found[character][field] = value
  return found


def _lines(path: pathlib.Path) -> list[str]:
  try:
    content = path.read_bytes()
    content = bz2.decompress(content) if path.suffix == '.bz2' else content
    return content.decode('utf-8').splitlines()
  except (OSError, ValueError) as e:
    reason = getattr(e, 'strerror', None) or e
    expected = f'an intact file of {_PACKAGE} ({reason})'
    expected += f': apt-get install {_PACKAGE}'
    raise UserError('Unihan', str(path), expected) from e


def _write(path: pathlib.Path, texts: dict[str, list[str]]) -> None:
  lines = (
    json.dumps({'class': character, 'text': text}, ensure_ascii=False) + '\n'
    for character, each in texts.items()
    for text in each
  )
  # Written as it is on every system.
  with path.open('w', encoding='utf-8', newline='\n') as file:
    file.writelines(lines)
