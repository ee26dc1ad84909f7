"""Tokenizers by name: the one place that knows them all."""

import pathlib

from softmoe.data.text.tokenizers import bpe, byte, sentencepiece, tokenizer

_FILES = {'bpe': bpe.Bpe, 'sentencepiece': sentencepiece.SentencePiece}
_FORMS = "'bytes', 'bpe:FILE.json' or 'sentencepiece:FILE.model'"


def open_tokenizer(name: str) -> tokenizer.Tokenizer:
  """Returns the tokenizer that `config.data.tokenizer` names.

  Raises:
    UserError: there is none of that name, its file is missing or is not of its
      kind, or its package is missing.
  """
  kind, _, path = name.partition(':')
  try:
    content = pathlib.Path(path).expanduser().read_bytes() if path else b''
  except OSError as error:
    expected = f'a file that can be read ({error.strerror})'
    raise tokenizer.wrong_content(name, expected) from error
  return from_content(name, content)


def from_content(name: str, content: bytes) -> tokenizer.Tokenizer:
  """Returns the tokenizer of a file whose content was kept.

  Args:
    name: as in `open_tokenizer`; its file may be gone.
    content: `Tokenizer.content`.

  Raises:
    UserError: as `open_tokenizer`.
  """
  kind, _, path = name.partition(':')
  if name == 'bytes':
    return byte.Bytes()
  if kind not in _FILES or not path:
    raise tokenizer.wrong_content(name, _FORMS)
  return _FILES[kind](name, content)
