"""Tiny tokenizers, trained once in a process, and text that is hard on them."""

import functools
import pathlib

from softmoe.data.text.tokenizers import bpe, sentencepiece

ODD = (
  '',
  ' ',
  ' a  b ',
  'line\r\n\n\tline\n',
  'NUL \x00 and \x7f',
  'e\u0301 is not \u00e9, nor ﬁ fi',
  '日本語とرَسْمٌ',
  '👩\u200d👩\u200d👧 🏳️\u200d🌈 𝕏',
  '\ufeffa\u2028b\u00a0c\ufffd⁇',
  '<eos> <2en> <unk> <s> <0x0A> <|endoftext|>',
)
_TRAIN = {'bpe': (bpe.train, 300), 'sentencepiece': (sentencepiece.train, 310)}
TEXTS = (
  'def f(x):\n  return x + 1\n',
  'the quick brown fox jumps over the lazy dog. ' * 3,
  'an expert is a copy of one module, and a router says which tokens go there',
  'tokens that are routed together are a group; groups are routed alone\n',
  'été 日本 😀\n',
)


@functools.cache
def content(kind):
  """Returns the content of a file."""
  function, size = _TRAIN[kind]
  return function(iter(TEXTS * 20), size, ['<2en>', '<2de>'])


def name(kind, folder: pathlib.Path):
  """Returns the name of a tokenizer, its file written to a folder."""
  if kind == 'bytes':
    return kind
  path = folder / f'file.{kind}'
  path.write_bytes(content(kind))
  return f'{kind}:{path}'
