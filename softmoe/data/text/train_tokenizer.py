"""Trains a tokenizer on a source of text.

python -m softmoe.data.text.train_tokenizer bpe stdlib stdlib.json
"""

import argparse
import pathlib
import sys

from softmoe.data import new_file
from softmoe.data.text import sources
from softmoe.data.text.tokenizers import bpe, registry, sentencepiece
from softmoe.data.text.tokenizers import tokenizer as tokenizer_lib
from softmoe.errors import UserError
from softmoe.process import arguments, launch

_KINDS = {'bpe': bpe.train, 'sentencepiece': sentencepiece.train}


def main(argv: list[str]) -> None:
  """Writes the file of a tokenizer that the arguments ask for.

  Raises:
    UserError: an argument or a document is wrong, or there is a file at OUT.
  """
  options = _parse(argv)
  special = options.special
  names = [tokenizer_lib.EOS, *special]
  if not all(names) or len(set(names)) < len(names):
    expected = f'names that are all different, without {tokenizer_lib.EOS!r}'
    raise UserError('--special', special, expected)
  out = pathlib.Path(options.out)
  new_file.check(out)
  source = sources.open_source(options.source, options.split)
  texts = (source[index] for index in range(len(source)))
  content = _KINDS[options.kind](texts, options.vocab_size, special)
  made = registry.from_content(f'{options.kind}:{out}', content)
  with new_file.new_file(out) as file:
    file.write(content)
  print(f'{out}: {made.vocab_size:,} tokens, SHA-256 {made.fingerprint}')


def _parse(argv: list[str]) -> argparse.Namespace:
  parser = arguments.Parser(
    'softmoe.data.text.train_tokenizer', 'Trains a tokenizer.'
  )
  add = parser.add_argument
  add('kind', metavar='KIND', choices=_KINDS, help=' or '.join(_KINDS))
  add('source', metavar='SOURCE', help="as in config.data, such as 'stdlib'")
  add('out', metavar='OUT', help='a new file')
  add(
    '--vocab_size',
    type=arguments.positive,
    default=8192,
    help='tokens, with EOS and all 256 bytes',
  )
  add('--split', default='train', help='of the source, or a slice of one')
  add(
    '--special',
    nargs='*',
    default=[],
    metavar='TOKEN',
    help="more tokens that no text holds, such as '<2en>'",
  )
  return parser.parse_args(argv)


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
