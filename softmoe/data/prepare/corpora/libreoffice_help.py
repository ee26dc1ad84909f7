"""LibreOffice's help in the languages that are installed: `docs/corpora.md`.

All packages hold the same pages, made from the same source, so that the n-th
paragraph of a page is the translation of the n-th paragraph of its English.
What nobody has translated is English in every language.
"""

import itertools
import os
import pathlib
from typing import Any

from softmoe.data.prepare import folder, workers
from softmoe.data.prepare.corpora import markup, packages, parallel, parts
from softmoe.errors import UserError

_ROOT = pathlib.Path('/usr/share/libreoffice/help')
_ENGLISH = 'en-US'
_PACKAGE = 'libreoffice-help-'
_LICENCE = 'MPL-2.0'
_PROCESSES = 2

# Where macOS differs, such as in its keys, both ways are there, one is shown.
_SKIPPED = frozenset(('script', 'style', '.MAC'))
_SCOPE = markup.Scope(('id', 'DisplayArea'), _SKIPPED)
_READ = markup.HEADINGS | {'p'}

Page = list[markup.Block]


def main(out: str) -> None:
  """Makes the corpus of this machine's packages, and says what is in it.

  Raises:
    UserError: English or every other language is not installed; see `prepare`.
  """
  languages = installed(_ROOT)
  names = {_PACKAGE + _package(each) for each in (_ENGLISH, *languages)}
  versions = packages.versions(names)
  made = prepare(out, _ROOT, languages, versions, _PROCESSES)
  for language, each in made['languages'].items():
    pairs = ', '.join(f'{s} {n:,}' for s, n in each['pairs'].items())
    share = each['dropped'].get('untranslated', 0) / max(each['found'], 1)
    print(f'{language}: {pairs}; untranslated: {share:.0%}')
  print(f'fingerprint: {made["fingerprint"]}')


def installed(root: pathlib.Path) -> list[str]:
  """Returns the languages that are there, English aside.

  Raises:
    UserError: there is none, or no English.
  """
  found = {path.parent.name for path in root.glob('*/text')}
  others = sorted(each for each in found if not each.startswith('en-'))
  if _ENGLISH not in found or not others:
    names = ' '.join(_PACKAGE + each for each in ('en-us', 'de', 'ru', 'zh-cn'))
    expected = f'two or more: apt-get install {names}; see docs/corpora.md'
    given = ' '.join(sorted(found)) or 'none'
    raise UserError("languages of LibreOffice's help", given, expected)
  return others


def prepare(
  out: str | os.PathLike,
  root: pathlib.Path,
  languages: list[str],
  versions: dict[str, str],
  processes: int,
) -> dict[str, Any]:
  """Makes the corpus of pages in `root/LANGUAGE/text`.

  Args:
    out: the new folder.
    root: what has a folder for each language, `en-US` among them.
    languages: to translate from.
    versions: of the packages, for the manifest.
    processes: how many read at a time.

  Returns:
    What `manifest.json` holds.

  Raises:
    UserError: `out` is not new.
  """
  with folder.new_folder(out) as new:
    names = _names(root / _ENGLISH)
    pages = _read(root, [_ENGLISH, *languages], names, processes)
    english = pages.pop(_ENGLISH)
    pairs = {
      language: _pairs(names, others, english)
      for language, others in pages.items()
    }
    unlike = {
      language: sum(
        not _alike(*two) for two in zip(others, english, strict=True)
      )
      for language, others in pages.items()
    }
    about = {
      'data': 'libreoffice-help',
      'format': 'parallel',
      'licence': _LICENCE,
      'packages': versions,
      'pages': len(names),
      'pages_of_another_structure': unlike,
    }
    return parallel.write(new, about, pairs, split_of)


def split_of(page: str) -> str:
  """Returns the split that a page is in, by chance of its name."""
  return parts.by_chance(f'page {page}')


def read(page: str) -> Page:
  """Returns the paragraphs and headings of a page's text."""
  return [block for block in markup.blocks(page, _SCOPE) if block.tag in _READ]


def _package(language: str) -> str:
  """Returns what a package is called for a language: Valencian is Catalan's."""
  return language.lower().removesuffix('-valencia')


def _names(english: pathlib.Path) -> list[str]:
  return sorted(
    path.relative_to(english).as_posix() for path in english.rglob('*.html')
  )


def _read(
  root: pathlib.Path, languages: list[str], names: list[str], processes: int
) -> dict[str, list[Page]]:
  """Returns the pages of each language, in the order of their names."""
  paths = [root / language / name for language in languages for name in names]
  found = iter(list(workers.each(_read_file, paths, processes)))
  return {
    language: list(itertools.islice(found, len(names)))
    for language in languages
  }


def _read_file(path: pathlib.Path) -> Page:
  """Returns a page, which is empty where a language has none of that name."""
  try:
    return read(path.read_text(encoding='utf-8', errors='replace'))
  except FileNotFoundError:
    return []


def _alike(a: Page, b: Page) -> bool:
  """Says whether pages have the same elements in the same order."""
  return [block[:2] for block in a] == [block[:2] for block in b]


def _pairs(
  names: list[str], sources: list[Page], targets: list[Page]
) -> list[parallel.Pair]:
  """Returns the paragraphs of pages of the same structure, side by side."""
  return [
    parallel.Pair(name, source.text, target.text)
    for name, page, english in zip(names, sources, targets, strict=True)
    if _alike(page, english)
    for source, target in zip(page, english, strict=True)
  ]
