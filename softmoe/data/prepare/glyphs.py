"""Kanji in every typeface that is installed: `docs/glyphs.md` tells of it.

Everything follows from the fonts: neither the order of files nor the number of
processes changes a byte. Chance is a hash of names (`chance.share`).
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from softmoe.data.prepare import (
  characters,
  folder,
  fonts,
  pairs,
  selection,
  store,
)

_FEW = 50  # faces; the whole list of packages gives more than twice as many


def main(out: str) -> None:
  """Makes the data set of this machine's fonts, and says what is in it.

  Raises:
    UserError: see `prepare`.
  """
  manifest = prepare(out, fonts.installed(), kanji(), os.cpu_count() or 1)
  for name, split in manifest['splits'].items():
    print(f'{name}: {split["images"]:,} images, {split["classes"]:,} classes')
  kept = manifest['faces']
  held_out = sorted({face['family'] for face in kept if face['held_out']})
  print(f'faces: {len(kept)} kept, {len(manifest["same"])} draw the same')
  print(f'held out: {", ".join(held_out)}')
  print(f'fingerprint: {manifest["fingerprint"]}')
  if len(kept) < _FEW:
    print(
      f'only {len(kept)} faces: docs/glyphs.md has the packages with more',
      file=sys.stderr,
    )


def kanji() -> pairs.Recipe:
  """Returns JIS level 1 as classes, and 500 characters of level 2."""
  return pairs.Recipe(characters.classes(), characters.others())


def prepare(
  out: str | os.PathLike,
  files: Iterable[str],
  recipe: pairs.Recipe,
  processes: int,
) -> dict[str, Any]:
  """Draws the recipe with every distinct face of some font files.

  Args:
    out: the new folder.
    files: the font files, in any order.
    recipe: what to draw.
    processes: how many draw at a time.

  Returns:
    What `manifest.json` holds.

  Raises:
    UserError: `out` is not new, or too few faces have the characters.
  """
  software = fonts.tools() | {'numpy': np.__version__}
  with folder.new_folder(out) as new:
    chosen = selection.choose(files, recipe, processes)
    splits = pairs.make(chosen.kept, recipe, processes)
    return store.write(new, splits, chosen, software)
