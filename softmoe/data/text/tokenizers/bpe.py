"""Byte-level BPE of the package `tokenizers`, kept in its JSON format.

Sennrich et al. 2016 (arXiv:1508.07909) over bytes as in GPT-2 (Radford et al.
2019): whatever text there is, it is made of the 256 bytes that every vocabulary
begins with. Files of others, such as GPT-2's and Llama 3's `tokenizer.json`,
can be read too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer

from softmoe.data.text.tokenizers import tokenizer
from softmoe.errors import UserError

# What EOS is called, in the files of others too.
_EOS_NAMES = (tokenizer.EOS, '<|endoftext|>', '<|end_of_text|>', '</s>')


class Bpe(tokenizer.Tokenizer):
  """A byte-level BPE.

  A token stands for as many bytes as its name has characters: the format writes
  each byte as one. A file whose text is normalised before (NFC) counts the
  bytes of the text that it makes of it.
  """

  def __init__(self, name: str, content: bytes):
    """Takes the content of the file `name`.

    Raises:
      UserError: it is no byte-level BPE with an EOS, or the package is missing.
    """
    self._library = _parse(name, content)
    added = self._library.get_added_tokens_decoder()
    special = {t.content: i for i, t in added.items() if t.special}
    eos = next((special[n] for n in _EOS_NAMES if n in special), None)
    if eos is None:
      expected = f'a file with one of the special tokens {list(_EOS_NAMES)}'
      raise tokenizer.wrong_content(name, expected)
    others = {n: i for n, i in special.items() if i != eos}
    num_bytes = _num_bytes(self._library.get_vocab(), added)
    super().__init__(content, num_bytes, eos, others)

  def encode_batch(
    self, texts: Sequence[str]
  ) -> list[Int32[np.ndarray, ' _n']]:
    """Returns the tokens of each text; the library uses all cores."""
    found = self._library.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.array(encoding.ids, np.int32) for encoding in found]

  def decode(self, ids: Integer[np.ndarray, ' n']) -> str:
    """Returns the text of tokens."""
    return self._library.decode(ids.tolist(), skip_special_tokens=True)


def train(
  texts: Iterator[str], vocab_size: int, special: Sequence[str]
) -> bytes:
  """Returns the content of the file of a new BPE; the same texts, the same one.

  Args:
    texts: what it learns from.
    vocab_size: number of tokens, special ones and the 256 bytes with them.
    special: names of special tokens beside EOS.

  Raises:
    UserError: there is too little text for so many tokens, or there are too few
      for the bytes; the package is missing.
  """
  package = _package()
  level = package.pre_tokenizers.ByteLevel
  least = len(level.alphabet()) + 1 + len(special)
  if vocab_size < least:
    raise UserError('--vocab_size', vocab_size, f'at least {least}')
  made = package.Tokenizer(package.models.BPE())
  made.pre_tokenizer = level(add_prefix_space=False)
  made.decoder = package.decoders.ByteLevel()
  trainer = package.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[tokenizer.EOS, *special],
    initial_alphabet=sorted(level.alphabet()),
    show_progress=False,
  )
  made.train_from_iterator(texts, trainer)
  found = made.get_vocab_size()
  if found < vocab_size:
    expected = f'at most {found}: the text has no more'
    raise UserError('--vocab_size', vocab_size, expected)
  return made.to_str(pretty=True).encode('utf-8')


def _package() -> Any:
  with tokenizer.optional():
    import tokenizers
  return tokenizers


def _parse(name: str, content: bytes) -> Any:
  package = _package()
  expected = 'a tokenizer.json of byte-level BPE'
  try:
    made = package.Tokenizer.from_buffer(content)
  except Exception as error:  # the library raises nothing more special
    raise tokenizer.wrong_content(name, f'{expected} ({error})') from error
  if not _is_byte_level(package, made):
    raise tokenizer.wrong_content(name, expected)
  made.encode_special_tokens = True  # as text, where they are in a text
  made.no_truncation()
  made.no_padding()
  return made


def _is_byte_level(package: Any, made: Any) -> bool:
  """Tells whether a token can be any byte, and its name says which bytes."""
  alphabet = package.pre_tokenizers.ByteLevel.alphabet()
  known = all(made.token_to_id(byte) is not None for byte in alphabet)
  names = made.encode('é', add_special_tokens=False).tokens
  is_bpe = isinstance(made.model, package.models.BPE)
  return is_bpe and known and ''.join(names).endswith('Ã©')


def _num_bytes(
  vocab: Mapping[str, int], added: Mapping[int, Any]
) -> Int32[np.ndarray, ' v']:
  """Returns 0 for special tokens and for numbers that no token has."""
  found = np.zeros(max(vocab.values()) + 1, np.int32)
  for name, token in vocab.items():
    found[token] = len(name)
  for token, each in added.items():  # their names are text, not bytes
    found[token] = 0 if each.special else len(each.content.encode('utf-8'))
  return found
