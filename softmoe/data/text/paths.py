"""Which files a split of a source holds."""

import glob
import os
import pathlib
from collections.abc import Container

from softmoe.data.text import documents

_SPLITS = ('train', 'val', 'validation', 'test')


def of_splits(argument: str, suffix: str = '') -> dict[str, list[pathlib.Path]]:
  """Returns the files of each split, in the order of their paths.

  A folder may hold folders or files that are called `train`, `val`,
  `validation` and `test`, whatever their suffixes: these are its splits.
  Everything else has one split, `train`, that of a folder with all that is
  below it.

  Args:
    argument: a file, a folder or a pattern such as `books/**/*.txt`.
    suffix: of the files that count in a folder, such as '.jsonl'; '': all.
      Hidden ones never do.

  Raises:
    UserError: there is no such file.
  """
  path = pathlib.Path(argument).expanduser()
  if path.is_file():
    return {'train': [path]}
  if argument and path.is_dir():
    found = _named(path, suffix) or {'train': below(path, suffix)}
  else:
    names = sorted(glob.glob(str(path), recursive=True)) if argument else []
    found = {'train': [p for p in map(pathlib.Path, names) if p.is_file()]}
  if not all(found.values()):
    expected = f'a file, or a folder or pattern of {suffix or "text"} files'
    raise documents.wrong(argument, expected)
  return found


def below(
  root: pathlib.Path, suffix: str, left_out: Container[str] = ()
) -> list[pathlib.Path]:
  """Returns the files below a folder by relative path, no hidden ones.

  Links to folders are followed. A folder that several paths lead to is entered
  once, so that links may go round in circles.

  Args:
    root: the folder.
    suffix: of the files.
    left_out: names of folders that are not entered.
  """
  found, entered = [], set()
  for folder, names, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in entered:
      names.clear()
      continue
    entered.add(real)
    # Sorted, so that it is the same path on every disk.
    names[:] = sorted(
      n for n in names if not n.startswith('.') and n not in left_out
    )
    found += [
      pathlib.Path(folder, file)
      for file in files
      if file.endswith(suffix) and not file.startswith('.')
    ]
  return sorted(found)


def _named(root: pathlib.Path, suffix: str) -> dict[str, list[pathlib.Path]]:
  """Returns the files of the splits that a folder names, if it does."""
  found = {name: [] for name in _SPLITS}
  for entry in sorted(root.iterdir()):
    name = entry.name.partition('.')[0]
    if name in _SPLITS and entry.is_dir():
      found[name] += below(entry, suffix)
    elif name in _SPLITS and entry.name.endswith(suffix):
      found[name].append(entry)
  return {name: files for name, files in found.items() if files}
