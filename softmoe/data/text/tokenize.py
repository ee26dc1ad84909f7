"""Tokenizes all splits of a source, into a file for `tokens:FILE`.

python -m softmoe.data.text.tokenize stdlib bpe:stdlib.json stdlib.bin
"""

import pathlib
import sys

from softmoe.data.text import corpus, sources, tokens
from softmoe.data.text.tokenizers import registry
from softmoe.process import arguments, launch


def main(argv: list[str]) -> None:
  """Writes OUT and OUT.json, and says how many tokens each split has.

  Raises:
    UserError: an argument or a document is wrong, or there is a file at OUT.
  """
  parser = arguments.Parser('softmoe.data.text.tokenize', 'Tokenizes a source.')
  for name in ('source', 'tokenizer'):
    parser.add_argument(name, metavar=name.upper(), help='as in config.data')
  parser.add_argument('out', metavar='OUT', help='a new file')
  options = parser.parse_args(argv)
  made = registry.open_tokenizer(options.tokenizer)
  streams = {
    name: corpus.encode(sources.open_source(options.source, name), made)
    for name in sources.split_names(options.source)
  }
  out = pathlib.Path(options.out)
  manifest = tokens.write(out, options.tokenizer, made, streams)
  for name, number in manifest['splits'].items():
    print(f'{name}: {number:,} tokens')


if __name__ == '__main__':
  launch.guard(lambda: main(sys.argv[1:]))
