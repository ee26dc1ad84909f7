"""Pairs of texts that say the same, cleaned, split and written.

A folder has `SPLIT.LANG-en.tsv` for each split and language: a text, a tab, the
same text in English, one pair a line, UTF-8, in a fixed and mixed order.
"""

import collections
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from softmoe.data import splits
from softmoe.data.prepare.corpora import manifest, parts, text

_RATIO = 4  # times longer than expected, or shorter, is absurd
_SLACK = 20  # characters that one side may be longer whatever the ratio
_ENGLISH = 0.6  # of the words of a text in those of its translation
_LONG = 4  # letters of a word that counts for that
_FEW = 4  # such words that a text has to have


class Pair(NamedTuple):
  """A text, what it is in English, and the document that it is from."""

  document: str
  source: str
  target: str


Dropped = collections.Counter[str]
Part = list[tuple[str, str]]


def write(
  folder: pathlib.Path,
  about: dict[str, Any],
  pairs: dict[str, list[Pair]],
  split_of: Callable[[str], str],
) -> dict[str, Any]:
  """Writes the splits of each language and the manifest; returns this.

  Args:
    folder: where to, empty.
    about: what else the manifest says.
    pairs: those of each language, by its code.
    split_of: from a document to the split it belongs to.
  """
  dropped = {language: Dropped() for language in pairs}
  cleaned = {
    language: clean(pairs[language], dropped[language]) for language in pairs
  }
  divided = divide(cleaned, split_of, dropped)
  languages = {}
  for language in pairs:
    counts = {}
    for split in parts.SPLITS:
      part = divided[split, language]
      _write(folder / f'{split}.{language}-en.tsv', part)
      counts[split] = len(part)
    languages[language] = {
      'found': len(pairs[language]),
      'pairs': counts,
      'dropped': dict(sorted(dropped[language].items())),
    }
  return manifest.write(folder, about | {'languages': languages})


def clean(pairs: Iterable[Pair], dropped: Dropped) -> list[Pair]:
  """Returns the pairs that are translations, on one line each.

  Left out, and counted in `dropped`, are in this order:
    no words: a side has no letter.
    untranslated: both sides are the same but for case and signs, or a source of
      4 words or more, of 4 letters or more, has 0.6 of them in its target.
    length: a side is more than 4 times as long as all texts together let
      expect, and more than 20 characters longer than that.
  """
  neat = [
    Pair(pair.document, text.clean(pair.source), text.clean(pair.target))
    for pair in pairs
  ]
  found = []
  for pair in neat:
    reason = _no_translation(pair)
    if reason:
      dropped[reason] += 1
    else:
      found.append(pair)
  return _of_like_length(found, dropped)


def divide(
  pairs: dict[str, list[Pair]],
  split_of: Callable[[str], str],
  dropped: dict[str, Dropped],
) -> dict[tuple[str, str], Part]:
  """Returns the distinct pairs of each split and language.

  A pair is left out of `val` and `test` where one of its texts is in a split
  before, in whatever language: the English of a page is the target of all.
  Texts are the same if they differ in case and signs alone.
  """
  earlier: set[str] = set()
  found: dict[tuple[str, str], Part] = {}
  for split in parts.SPLITS:
    here: set[str] = set()
    for language, each in pairs.items():
      rows = [pair for pair in each if split_of(pair.document) == split]
      kept = _distinct(rows, earlier, dropped[language], split)
      here.update(text.key(side) for pair in kept for side in pair)
      found[split, language] = kept
    earlier |= here
  return found


def _no_translation(pair: Pair) -> str:
  """Returns why a pair is none, or nothing."""
  sides = pair.source, pair.target
  if not all(any(map(str.isalpha, side)) for side in sides):
    return 'no words'
  source, target = map(text.key, sides)
  if source == target or _is_english(pair):
    return 'untranslated'
  return ''


def _is_english(pair: Pair) -> bool:
  """Says whether a source repeats its target's words, links or names aside."""
  source = [word for word in text.words(pair.source) if len(word) >= _LONG]
  target = set(text.words(pair.target))
  common = sum(word in target for word in source)
  return len(source) >= _FEW and common >= _ENGLISH * len(source)


def _of_like_length(pairs: list[Pair], dropped: Dropped) -> list[Pair]:
  total = sum(len(pair.source) for pair in pairs)
  scale = sum(len(pair.target) for pair in pairs) / max(total, 1)
  found = []
  for pair in pairs:
    short, long = sorted((len(pair.source) * scale, len(pair.target)))
    if long > _RATIO * short and long > short + _SLACK:
      dropped['length'] += 1
    else:
      found.append(pair)
  return found


def _distinct(
  pairs: list[Pair], earlier: set[str], dropped: Dropped, split: str
) -> Part:
  """Returns the pairs that are new, by source and target, in a mixed order."""
  found: dict[tuple[str, str], tuple[str, str]] = {}
  for _, source, target in pairs:
    keys = text.key(source), text.key(target)
    if not earlier.isdisjoint(keys):
      dropped[f'{split}: in a split before'] += 1
    elif keys in found:
      dropped['repeated'] += 1
    else:
      found[keys] = source, target
  rows = list(found.values())
  return [rows[i] for i in splits.fixed_order(len(rows))]


def _write(path: pathlib.Path, part: Part) -> None:
  lines = (f'{source}\t{target}\n' for source, target in part)
  # Written as it is on every system.
  with path.open('w', encoding='utf-8', newline='\n') as file:
    file.writelines(lines)
