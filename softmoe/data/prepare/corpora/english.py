"""Technical English and a dictionary, from manuals: `docs/corpora.md`."""

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from softmoe.data import splits
from softmoe.data.prepare import folder, workers
from softmoe.data.prepare.corpora import (
  manifest,
  manuals,
  packages,
  parts,
  prose,
  text,
)

_LOST = 0.5  # of a document, by characters
_SHORT = 200  # characters
_PROCESSES = 2


class Document(NamedTuple):
  """What a page says, and the package that it is from."""

  package: str
  name: str
  pieces: list[prose.Piece]


Counts = dict[str, collections.Counter[str]]


def main(out: str) -> None:
  """Makes the corpus of this machine's packages, and says what is in it.

  Raises:
    UserError: a package is not installed, or `out` is not new.
  """
  versions = packages.versions({each.package for each in manuals.ALL})
  made = prepare(out, manuals.ALL, versions, _PROCESSES)
  for package, each in made['sources'].items():
    number = sum(each.get(split, 0) for split in parts.SPLITS)
    size = each.get('bytes', 0) / 1e6
    print(f'{package}: {number:,} documents, {size:.1f} MB')
  for split, each in made['splits'].items():
    number, size = each['documents'], each['bytes'] / 1e6
    print(f'{split}: {number:,} documents, {size:.1f} MB')
  print(f'fingerprint: {made["fingerprint"]}')


def prepare(
  out: str | os.PathLike,
  chosen: Sequence[manuals.Manual],
  versions: dict[str, str],
  processes: int,
) -> dict[str, Any]:
  """Makes the corpus of what manuals hold.

  Args:
    out: the new folder.
    chosen: the manuals.
    versions: of the packages, for the manifest.
    processes: how many read at a time.

  Returns:
    What `manifest.json` holds.

  Raises:
    UserError: `out` is not new, or a manual has no files.
  """
  counts: Counts = collections.defaultdict(collections.Counter)
  tasks = [(each, path) for each in chosen for path in manuals.files(each)]
  with folder.new_folder(out) as new:
    read = workers.each(_read_file, tasks, processes)
    divided = divide(list(itertools.chain.from_iterable(read)), counts)
    about = {
      'data': 'english',
      'format': 'jsonl',
      'licences': {each.package: each.licence for each in chosen},
      'packages': versions,
      'splits': {
        split: _write(new, split, divided[split]) for split in parts.SPLITS
      },
      'sources': {name: dict(sorted(counts[name].items())) for name in counts},
    }
    return manifest.write(new, about)


def split_of(document: Document) -> str:
  """Returns the split that a document is in, by chance of its name."""
  return parts.by_chance(f'document {document.package}/{document.name}')


def divide(
  found: Sequence[Document], counts: Counts
) -> dict[str, list[tuple[str, str]]]:
  """Returns the text and the package of the documents of each split.

  A paragraph is kept once, in the first split that has it, and what repeats is
  thus left to `train`; paragraphs are the same if they differ in case and signs
  alone. Headings may repeat. A document is dropped if it loses more than half
  of its characters by that, or if fewer than 200 are left; its paragraphs then
  count as not seen. `counts` takes, for each package, what is kept and dropped.
  """
  seen: set[str] = set()
  divided: dict[str, list[tuple[str, str]]] = {}
  for split in parts.SPLITS:
    here = [each for each in found if split_of(each) == split]
    divided[split] = [
      (_text(new), document.package)
      for document in here
      if (new := _take(document, seen, counts[document.package], split))
    ]
  return divided


def _take(
  document: Document,
  seen: set[str],
  count: collections.Counter[str],
  split: str,
) -> list[prose.Piece]:
  """Returns what is new in a document and marks it as seen, or nothing."""
  new: list[prose.Piece] = []
  keys: set[str] = set()
  for piece in document.pieces:
    key = '' if piece.level else text.key(piece.text)
    if key not in seen and key not in keys:
      new.append(piece)
      keys.update({key} - {''})
  count['paragraphs repeated'] += len(document.pieces) - len(new)
  left, whole = prose.size(new), prose.size(document.pieces)
  if left < _LOST * whole:
    count['dropped: repeated'] += 1
  elif left < _SHORT:
    count['dropped: short'] += 1
  else:
    seen |= keys
    count[split] += 1
    count['bytes'] += len(_text(new).encode())
    return new
  return []


def _text(pieces: Sequence[prose.Piece]) -> str:
  return '\n\n'.join(piece.text for piece in prose.headed(pieces))


def _read_file(task: tuple[manuals.Manual, pathlib.Path]) -> list[Document]:
  manual, path = task
  return [
    Document(manual.package, name, prose.pieces(blocks))
    for name, blocks in manuals.documents(manual, path).items()
  ]


def _write(
  new: pathlib.Path, split: str, part: Sequence[tuple[str, str]]
) -> dict[str, int]:
  """Writes a split in a mixed order; returns how many documents and bytes."""
  size = 0
  path = new / f'{split}.jsonl'
  # Written as it is on every system.
  with path.open('w', encoding='utf-8', newline='\n') as file:
    for i in splits.fixed_order(len(part)):
      content, source = part[i]
      line = {'text': content, 'source': source}
      file.write(json.dumps(line, ensure_ascii=False) + '\n')
      size += len(content.encode())
  return {'documents': len(part), 'bytes': size}
