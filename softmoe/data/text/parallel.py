"""Pairs of a text and its translation, from files or TensorFlow Datasets.

parallel:FILE.tsv      a text, a tab, its translation, one pair a line
parallel:FILE,FILE     two files whose lines belong together
parallel:FOLDER        SPLIT.tsv, or SPLIT.XX-YY.tsv for each language XX
tfds:NAME              a data set of two languages, the first into the second
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from softmoe.data import splits
from softmoe.data import tfds as tfds_lib
from softmoe.data.text import documents


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Aligned texts.

  Attributes:
    sources: what is translated.
    targets: its translations.
    languages: of each source, '' where nothing says so.
  """

  sources: Sequence[str]
  targets: Sequence[str]
  languages: Sequence[str]

  def __len__(self) -> int:
    return len(self.sources)

  def take(self, indices: Sequence[int]) -> 'Pairs':
    """Returns the pairs at these places."""
    parts = (self.sources, self.targets, self.languages)
    return Pairs(*([part[i] for i in indices] for part in parts))


def open_pairs(name: str, split: str) -> Pairs:
  """Returns the pairs of a split; read and checked now.

  Where a source has but one split, its pairs are put into a fixed and mixed
  order first, so that any slice is a fair sample.

  Args:
    name: of the source, as above.
    split: a split of it, or a slice of one.

  Raises:
    UserError: the source or the split is unknown, missing, empty, not aligned,
      or not UTF-8.
  """
  kind, _, argument = name.partition(':')
  if kind not in _OPENERS or not argument:
    raise documents.wrong(name, "'parallel:PATH' or 'tfds:NAME'")
  whole = _OPENERS[kind](argument, splits.base_name(split))
  return whole.take(splits.indices(split, len(whole)))


def _of_path(argument: str, split: str) -> Pairs:
  first, comma, second = argument.partition(',')
  path = pathlib.Path(first).expanduser()
  if path.is_dir():
    return _of_folder(path, split)
  if split != 'train':
    raise splits.unknown(split, ['train'])
  if comma:
    pairs = _of_two(path, pathlib.Path(second).expanduser())
  else:
    pairs = _of_table(path, '')
  return pairs.take(splits.fixed_order(len(pairs)).tolist())


def _of_folder(folder: pathlib.Path, split: str) -> Pairs:
  found = {
    path.name.removesuffix('.tsv'): path
    for path in sorted(folder.glob('*.tsv'))
  }
  names = {name.partition('.')[0] for name in found}
  if split not in names:
    if not names:
      raise documents.wrong(str(folder), 'a folder with SPLIT.tsv files')
    raise splits.unknown(split, names)
  parts = []
  for name, path in found.items():
    of, _, direction = name.partition('.')
    if of == split:
      parts.append(_of_table(path, direction.rpartition('-')[0]))
  joined = Pairs(
    *(
      [text for part in parts for text in getattr(part, field.name)]
      for field in dataclasses.fields(Pairs)
    )
  )
  # Languages one after another would make no slice a fair sample.
  return joined.take(splits.fixed_order(len(joined)).tolist())


def _of_table(path: pathlib.Path, language: str) -> Pairs:
  sources, targets = [], []
  for number, line in enumerate(_lines(path), 1):
    source, tab, target = line.partition('\t')
    if not tab or '\t' in target:
      count = line.count('\t')
      expected = f'one tab in each line; line {number} has {count}'
      raise documents.wrong(str(path), expected)
    sources.append(source)
    targets.append(target)
  return Pairs(sources, targets, [language] * len(sources))


def _of_two(first: pathlib.Path, second: pathlib.Path) -> Pairs:
  sources, targets = _lines(first), _lines(second)
  if len(sources) != len(targets):
    expected = (
      f'files of as many lines: {first} has {len(sources)}, '
      f'{second} has {len(targets)}'
    )
    raise documents.wrong(f'{first},{second}', expected)
  return Pairs(sources, targets, [''] * len(sources))


def _lines(path: pathlib.Path) -> list[str]:
  try:
    text = documents.decode(path.read_bytes(), str(path))
  except OSError as e:
    expected = f'a file that can be read ({e.strerror})'
    raise documents.wrong(str(path), expected) from e
  # Not `splitlines`, which knows more ends of a line than files of lines do.
  lines = text.removesuffix('\n').split('\n') if text else []
  if not lines:
    raise documents.wrong(str(path), 'a file with pairs; this one is empty')
  return [line.removesuffix('\r') for line in lines]


def _of_tfds(argument: str, split: str) -> Pairs:
  builder = tfds_lib.find(argument)
  if split not in builder.info.splits:
    raise splits.unknown(split, builder.info.splits)
  keys: Any = builder.info.supervised_keys or ()
  if len(keys) != 2:
    raise tfds_lib.wrong(argument, 'a data set of translations')
  examples = tfds_lib.examples(argument, builder, split)
  sources, targets = [], []
  for i in range(len(examples)):
    example, name = examples[i], f'tfds:{argument}, example {i}'
    for texts, key in zip((sources, targets), keys, strict=True):
      texts.append(documents.decode(example[key], name))
  return Pairs(sources, targets, [''] * len(sources))


_OPENERS = {'parallel': _of_path, 'tfds': _of_tfds}
