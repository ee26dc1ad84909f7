"""Console commands: flags in, one JSON line out."""

import importlib.util
import sys

from softmoe.errors import BAD_INPUT

# pip writes the commands for an install that has the layers alone, too.
if not importlib.util.find_spec('ml_collections'):
  print("error: training needs pip install 'softmoe[train]'", file=sys.stderr)
  sys.exit(BAD_INPUT)
