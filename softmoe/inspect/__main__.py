"""Shows what the routers of a run do, as one page and as JSON.

python -m softmoe.inspect WORKDIR [--step=STEP] [--split=SPLIT] [--examples=N]
  [--out=FOLDER]
"""

import pathlib
import sys

from softmoe.process import arguments, launch


def main(argv: list[str]) -> None:
  """Writes `inspect.html` and `inspect.json`, and tells where they are."""
  options = _parser().parse_args(argv)
  launch.prepare()
  from softmoe.inspect import write

  run = write.Run(
    options.workdir, options.step, options.split, options.examples
  )
  for path in write.write(run, options.out or options.workdir):
    print(path)


def _parser() -> arguments.Parser:
  parser = arguments.Parser('softmoe.inspect', __doc__ or '')
  parser.add_argument('workdir', metavar='WORKDIR', type=pathlib.Path)
  steps = "which checkpoint: 'latest', 'best' or a step"
  parser.add_argument('--step', default='latest', help=steps)
  splits = "which split; not given: the config's eval_split"
  parser.add_argument('--split', default='', help=splits)
  count = 'how many examples at most, from all over the split; not given: 512'
  number = arguments.positive
  parser.add_argument('--examples', type=number, default=512, help=count)
  folder = 'where to write; not given: into WORKDIR'
  parser.add_argument('--out', metavar='FOLDER', type=pathlib.Path, help=folder)
  return parser


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
