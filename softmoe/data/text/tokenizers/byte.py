"""UTF-8 itself: a token for each byte, and EOS."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Integer

from softmoe.data.text.tokenizers import tokenizer

_EOS = 256


class Bytes(tokenizer.Tokenizer):
  """The 256 bytes, and EOS = 256."""

  def __init__(self):
    num_bytes = np.ones(_EOS + 1, np.int32)
    num_bytes[_EOS] = 0
    super().__init__(b'', num_bytes, _EOS, {})

  def encode_batch(
    self, texts: Sequence[str]
  ) -> list[Int32[np.ndarray, ' _n']]:
    """Returns the bytes of each text."""
    return [
      np.frombuffer(text.encode('utf-8'), np.uint8).astype(np.int32)
      for text in texts
    ]

  def decode(self, ids: Integer[np.ndarray, ' n']) -> str:
    """Returns the text of bytes."""
    found = ids[ids != _EOS].astype(np.uint8).tobytes()
    return found.decode('utf-8', errors='replace')
