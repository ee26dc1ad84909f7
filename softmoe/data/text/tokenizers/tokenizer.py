"""What a tokenizer is."""

import abc
import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Integer

from softmoe.errors import UserError

# Of the tokenizers that are trained here.
EOS = '<eos>'


class Tokenizer(abc.ABC):
  """From text to tokens and back. A token is a number below `vocab_size`.

  Attributes:
    content: of its file, from which it can be made again; b'' if it has none.
    num_bytes: UTF-8 bytes of the text that each token stands for; 0 for EOS and
      other special tokens, which stand for none.
    eos: the token behind each document.
    special: other tokens that no text is encoded to, by name, such as `<2en>`.
  """

  def __init__(
    self,
    content: bytes,
    num_bytes: Int32[np.ndarray, ' v'],
    eos: int,
    special: Mapping[str, int],
  ):
    self.content = content
    self.num_bytes = num_bytes
    self.eos = eos
    self.special = special

  @property
  def vocab_size(self) -> int:
    """The number of tokens."""
    return len(self.num_bytes)

  @property
  def fingerprint(self) -> str:
    """The SHA-256 of the content, in hexadecimal."""
    return hashlib.sha256(self.content).hexdigest()

  def encode(self, text: str) -> Int32[np.ndarray, ' n']:
    """Returns the tokens of a text, without EOS.

    What looks like a special token in it is text like any other.
    """
    return self.encode_batch([text])[0]

  @abc.abstractmethod
  def encode_batch(
    self, texts: Sequence[str]
  ) -> list[Int32[np.ndarray, ' _n']]:
    """Returns the tokens of each text, as `encode` does."""

  @abc.abstractmethod
  def decode(self, ids: Integer[np.ndarray, ' n']) -> str:
    """Returns the text of tokens, of which special ones have none.

    Bytes that are no UTF-8 become U+FFFD.
    """


@contextlib.contextmanager
def optional() -> Iterator[None]:
  """Tells what to install where an import inside it finds no package.

  Raises:
    UserError: the package is not installed.
  """
  try:
    yield
  except ImportError as error:
    expected = "an install with it: pip install 'softmoe[text]'"
    raise UserError(f'package {error.name}', None, expected) from error


def wrong_content(name: str, expected: str) -> UserError:
  """Returns the error for a tokenizer that cannot be used."""
  return UserError('config.data.tokenizer', name, expected)
