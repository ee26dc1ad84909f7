"""The source text of the running Python's standard library: `stdlib`.

It is there wherever this package runs: some 730 files, 12 MB of Python. Each
release has other text, so figures are of one release of Python; a run's
fingerprint tells. Tests, installed packages and empty files are left out. The
only split is `train`, to be sliced.
"""

import pathlib
import sysconfig

from softmoe.data.text import documents, paths, text_files

_LEFT_OUT = {'site-packages', 'dist-packages', 'test', 'tests', 'idle_test'}


def open_splits(argument: str) -> dict[str, documents.Documents]:
  """Returns the one split; opens no file.

  Raises:
    UserError: there is an argument, or this Python has no such files.
  """
  if argument:
    expected = "'stdlib', without argument"
    raise documents.wrong(f'stdlib:{argument}', expected)
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  found = paths.below(root, '.py', _LEFT_OUT)
  files = [path for path in found if path.stat().st_size]
  if not files:
    expected = f"a Python with its library's source in {root}"
    raise documents.wrong('stdlib', expected)
  return {'train': text_files.TextFiles(files)}
