"""Windows of a stream of tokens: the examples.

A document is seen as EOS, t1, ..., tn, EOS: the EOS in front of it, which is
that behind the one before, is the token from which t1 is predicted, and belongs
to t1's document there. So all tokens of all documents are predicted, each from
its own document alone, and bits per byte leave out no byte.

Axes: `l` tokens of a window.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool

from softmoe.data.text import corpus as corpus_lib
from softmoe.data.text import documents

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows of `length` targets, each `stride` behind the one before.

  The last one may be shorter, and is filled up with zeros.
  """

  corpus: corpus_lib.Corpus
  length: int
  stride: int

  def __len__(self) -> int:
    rest = max(len(self.corpus.tokens) - self.length, 0)
    return 1 + -(-rest // self.stride)

  def example(self, index: int) -> Example:
    """Returns a window; every target of the stream counts in just one of them.

    Returns:
      {'tokens': int32 (l,); 'targets': int32 (l,), the token behind each;
      'weights': float32 (l,), 1 where the target counts, 0 where an earlier
      window has it and on padding; 'segments': int32 (l,), the target's
      document, numbered from 1 in each window, 0 on padding; 'positions': int32
      (l,), the place in that document's part of the window, from 0; 'bytes':
      int32 (l,), those that the target stands for}.

    Raises:
      UserError: the stream has a token that is not in the vocabulary.
    """
    eos = self.corpus.tokenizer.eos
    start, stop = self._range(index)
    targets = self.corpus.tokens[start:stop].astype(np.int32)
    before = self.corpus.tokens[start - 1] if start else eos
    tokens = np.append(np.int32(before), targets[:-1])
    self._check(targets)
    begins = tokens == eos
    begins[0] = True
    return self._padded(
      tokens=tokens,
      targets=targets,
      weights=self._is_new(index).astype(np.float32),
      segments=np.cumsum(begins, dtype=np.int32),
      positions=_since(begins),
      bytes=self.corpus.tokenizer.num_bytes[targets],
    )

  def eval_example(self, index: int) -> Example:
    """Returns a window and, in it, what makes sums means over documents.

    Returns:
      As `example`, and 'share': float32 (l,), 1 / (number of targets of the
      document), the EOS with them, where `weights` is 1, and else 0.

    Raises:
      UserError: as `example`.
    """
    start, stop = self._range(index)
    ends = self.corpus.ends
    found = np.searchsorted(ends, np.arange(start, stop), side='right')
    sizes = ends[found] - np.where(found, ends[found - 1], 0)
    share = self._is_new(index) / sizes
    padded = self._padded(share=share.astype(np.float32))
    return self.example(index) | padded

  def _range(self, index: int) -> tuple[int, int]:
    start = index * self.stride
    return start, min(start + self.length, len(self.corpus.tokens))

  def _is_new(self, index: int) -> Bool[np.ndarray, ' l']:
    """Tells which targets no earlier window has."""
    start, stop = self._range(index)
    seen = start + self.length - self.stride if index else 0
    return np.arange(start, stop) >= seen

  def _check(self, targets: np.ndarray) -> None:
    largest, size = int(targets.max()), self.corpus.tokenizer.vocab_size
    if largest >= size:
      expected = f'below {size}, the size of the vocabulary'
      raise documents.wrong(f'token {largest}', expected)

  def _padded(self, **arrays: np.ndarray) -> Example:
    return {name: self._pad(array) for name, array in arrays.items()}

  def _pad(self, array: np.ndarray) -> np.ndarray:
    padded = np.zeros(self.length, array.dtype)  # np.pad takes 20 times as long
    padded[: len(array)] = array
    return padded


def _since(begins: Bool[np.ndarray, ' l']) -> np.ndarray:
  """Returns how far each place is behind the last beginning."""
  places = np.arange(len(begins), dtype=np.int32)
  return places - np.maximum.accumulate(np.where(begins, places, 0))
