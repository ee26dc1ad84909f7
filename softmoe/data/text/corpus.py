"""A split as one stream of tokens: its documents, EOS behind each."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt

from softmoe.data.text import documents as documents_lib
from softmoe.data.text.tokenizers import tokenizer as tokenizer_lib

# The underscore allows one function to take one size and return another.
Tokens = UInt[np.ndarray, ' _t']

_DOCUMENTS = 256  # that are encoded at once
_CHUNK = 2**24  # tokens that are looked at at once


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The tokens of a split.

  Attributes:
    tokens: of all documents, in memory or mapped from a file.
    tokenizer: that they are of.
    fingerprint: a hash of what they were read from or of themselves.
  """

  tokens: Tokens
  tokenizer: tokenizer_lib.Tokenizer
  fingerprint: str

  @functools.cached_property
  def ends(self) -> Int64[np.ndarray, ' d']:
    """How many tokens there are up to the EOS of each document, with it."""
    return document_ends(self.tokens, self.tokenizer.eos)


def of_documents(
  documents: documents_lib.Documents, tokenizer: tokenizer_lib.Tokenizer
) -> Corpus:
  """Returns the stream of documents, tokenized now.

  Raises:
    UserError: a document is not valid.
  """
  digest, found = hashlib.sha256(), []
  for tokens in encode(documents, tokenizer):
    digest.update(tokens.tobytes())
    found.append(tokens)
  return Corpus(np.concatenate(found), tokenizer, digest.hexdigest())


def encode(
  documents: documents_lib.Documents, tokenizer: tokenizer_lib.Tokenizer
) -> Iterator[Tokens]:
  """Yields the tokens of each document with EOS behind them.

  They are uint16 where all tokens of the vocabulary are, or else uint32.

  Raises:
    UserError: a document is not valid.
  """
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
  for start in range(0, len(documents), _DOCUMENTS):
    stop = min(start + _DOCUMENTS, len(documents))
    texts = [documents[index] for index in range(start, stop)]
    for ids in tokenizer.encode_batch(texts):
      yield np.append(ids, tokenizer.eos).astype(dtype)


def document_ends(tokens: Tokens, eos: int) -> Int64[np.ndarray, ' d']:
  """Returns the place behind each EOS, a chunk of the tokens at a time."""
  return np.concatenate(
    [
      np.flatnonzero(tokens[start : start + _CHUNK] == eos) + start + 1
      for start in range(0, len(tokens), _CHUNK)
    ]
  )
