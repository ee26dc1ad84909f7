"""SentencePiece models: Kudo & Richardson 2018 (arXiv:1808.06226)."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer

from softmoe.data.text.tokenizers import tokenizer
from softmoe.errors import UserError

_SPACE = '▁'  # U+2581, which pieces have for a space


class SentencePiece(tokenizer.Tokenizer):
  """A SentencePiece model.

  A token stands for the bytes of its piece, where `▁` is a space, and for one
  byte where it is a byte that no piece has. So bytes are those of the text as
  the model normalises it: models trained here leave it as it is, but for U+2581
  itself, which becomes a space; others may add a space in front or apply NFKC.
  Unknown pieces, of models without bytes, count as 0.
  """

  def __init__(self, name: str, content: bytes):
    """Takes the content of the file `name`.

    Raises:
      UserError: it is no model with an EOS, or the package is missing.
    """
    self._model = _parse(name, content)
    pieces = range(self._model.vocab_size())
    eos = self._model.eos_id()
    special = {
      self._model.id_to_piece(i): i
      for i in pieces
      if self._model.is_control(i) and i != eos
    }
    num_bytes = np.array([_bytes_of(self._model, i) for i in pieces], np.int32)
    super().__init__(content, num_bytes, eos, special)

  def encode_batch(
    self, texts: Sequence[str]
  ) -> list[Int32[np.ndarray, ' _n']]:
    """Returns the tokens of each text; the library uses all cores."""
    return [np.array(ids, np.int32) for ids in self._model.encode(list(texts))]

  def decode(self, ids: Integer[np.ndarray, ' n']) -> str:
    """Returns the text of tokens."""
    return self._model.decode(ids.tolist())


def train(
  texts: Iterator[str], vocab_size: int, special: Sequence[str]
) -> bytes:
  """Returns the content of the file of a new unigram model of text as it is.

  It learns from lines; a newline is a byte of its own. The same texts give the
  same model.

  Args:
    texts: what it learns from.
    vocab_size: number of tokens, special ones and the 256 bytes with them.
    special: names of special tokens beside EOS.

  Raises:
    UserError: there is too little text for so many tokens, or there are too few
      for the bytes; the package is missing.
  """
  package = _package()
  out = io.BytesIO()
  lines = (line for text in texts for line in text.split('\n') if line)
  try:
    package.SentencePieceTrainer.train(
      sentence_iterator=lines,
      model_writer=out,
      vocab_size=vocab_size,
      control_symbols=list(special),
      model_type='unigram',
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      byte_fallback=True,
      max_sentence_length=2**20,  # bytes; longer ones would be left out
      unk_id=0,
      eos_id=1,
      bos_id=-1,
      pad_id=-1,
      eos_piece=tokenizer.EOS,
      num_threads=1,  # the order of sums would depend on it
      minloglevel=2,
    )
  except RuntimeError as error:
    reason = str(error).rpartition('] ')[2]
    expected = f'a number that suits the text ({reason})'
    raise UserError('--vocab_size', vocab_size, expected) from error
  return out.getvalue()


def _package() -> Any:
  with tokenizer.optional():
    import sentencepiece
  return sentencepiece


def _parse(name: str, content: bytes) -> Any:
  package = _package()
  expected = 'a SentencePiece model with an EOS'
  try:
    model = package.SentencePieceProcessor()
    model.LoadFromSerializedProto(content)
  except RuntimeError as error:
    raise tokenizer.wrong_content(name, f'{expected} ({error})') from error
  if model.eos_id() < 0:
    raise tokenizer.wrong_content(name, expected)
  return model


def _bytes_of(model: Any, token: int) -> int:
  if model.is_byte(token):
    return 1
  if model.is_control(token) or model.is_unknown(token):
    return 0
  return len(model.id_to_piece(token).replace(_SPACE, ' ').encode('utf-8'))
