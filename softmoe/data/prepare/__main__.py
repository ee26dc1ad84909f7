"""Makes a data set in a new folder.

python -m softmoe.data.prepare glyphs data/glyphs
"""

import importlib
import sys

from softmoe.errors import UserError
from softmoe.process import launch

# Each module has `main(out)`; it is imported when it is asked for.
_NAMES = {
  'bible-en-es': 'softmoe.data.prepare.corpora.bible',
  'english': 'softmoe.data.prepare.corpora.english',
  'glyphs': 'softmoe.data.prepare.glyphs',
  'libreoffice-help': 'softmoe.data.prepare.corpora.libreoffice_help',
}


def main(argv: list[str]) -> None:
  """Makes the data set that is named."""
  if len(argv) != 2:
    usage = f'NAME OUT, NAME one of {sorted(_NAMES)}, OUT a new folder'
    raise UserError('arguments', ' '.join(argv), usage)
  name, out = argv
  if name not in _NAMES:
    raise UserError('NAME', name, f'one of {sorted(_NAMES)}')
  importlib.import_module(_NAMES[name]).main(out)


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
