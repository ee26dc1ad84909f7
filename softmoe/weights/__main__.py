"""Weights files: what they hold, from format to format, and from a run.

python -m softmoe.weights inspect FILE
python -m softmoe.weights convert FILE OUT --to=timm
python -m softmoe.weights export WORKDIR[@STEP] OUT --to=hugging_face
"""

import signal
import sys

from softmoe.errors import UserError
from softmoe.process import arguments, launch

COMMANDS = ('inspect', 'convert', 'export')


def main(argv: list[str]) -> None:
  """Does what the arguments ask for."""
  from softmoe.weights import commands

  name = argv[0] if argv else ''
  if name not in COMMANDS:
    raise UserError('COMMAND', name, f'one of {COMMANDS}')
  options = vars(_parser(name).parse_args(argv[1:]))
  for line in getattr(commands, name)(**options):
    print(line)


def _parser(command: str) -> arguments.Parser:
  parser = arguments.Parser(f'softmoe.weights {command}', __doc__ or '')
  if command == 'export':
    parser.add_argument('run', metavar='WORKDIR[@STEP]')
  else:
    heads = 'of attention, where the file does not tell'
    parser.add_argument('file', help='a file or folder, or hf://OWNER/NAME')
    parser.add_argument('--heads', type=arguments.positive, help=heads)
  if command == 'inspect':
    return parser
  parser.add_argument('out', metavar='OUT', help='a new folder')
  parser.add_argument('--to', required=True, metavar='FORMAT')
  parser.add_argument('--push', default='', metavar='OWNER/NAME')
  return parser


if __name__ == '__main__':
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it silently
  launch.guard(lambda: main(sys.argv[1:]))
