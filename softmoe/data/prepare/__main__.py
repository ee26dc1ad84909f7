"""Makes a data set in a new folder.

python -m softmoe.data.prepare glyphs data/glyphs
"""

import importlib
import sys

from softmoe.errors import UserError
from softmoe.process import arguments, launch

# Each module has `main(out)`; it is imported when it is asked for.
_NAMES = {
  'bible-en-es': 'softmoe.data.prepare.corpora.bible',
  'captions': 'softmoe.data.prepare.captions',
  'english': 'softmoe.data.prepare.corpora.english',
  'glyphs': 'softmoe.data.prepare.glyphs',
  'libreoffice-help': 'softmoe.data.prepare.corpora.libreoffice_help',
}


def main(argv: list[str]) -> None:
  """Makes the data set that is named."""
  parser = arguments.Parser('softmoe.data.prepare', __doc__.splitlines()[0])
  names = f'one of {sorted(_NAMES)}'
  parser.add_argument('name', metavar='NAME', help=names)
  parser.add_argument('out', metavar='OUT', help='a new folder')
  options = parser.parse_args(argv)
  name = options.name
  if name not in _NAMES:
    raise UserError('NAME', name, names)
  importlib.import_module(_NAMES[name]).main(options.out)


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
