"""Batches of sentence pairs, as tokens, by length.

Axes: `n` pairs of a batch, `l` tokens of its bucket.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Int32

from softmoe.config import DataConfig
from softmoe.data import splits, stream
from softmoe.data.text import buckets, corpus, parallel
from softmoe.data.text.tokenizers import registry
from softmoe.data.text.tokenizers.tokenizer import Tokenizer
from softmoe.errors import UserError
from softmoe.ranges import SIZE


@dataclasses.dataclass(frozen=True)
class PairDataConfig(DataConfig):
  """Where pairs of sentences come from, and how long they may be."""

  train_split: str = 'train'
  eval_split: str = 'val'
  tokenizer: str = ''  # 'bpe:FILE.json', 'sentencepiece:FILE.model' or 'bytes'
  # Tokens of the longer side, with EOS. Longer pairs are not trained on; at
  # evaluation what is longer is cut off.
  buckets: tuple[Annotated[int, SIZE], ...] = (16, 32, 64, 128)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """A split as tokens.

  Attributes:
    sources: a language token where there are languages, tokens, EOS.
    targets: tokens, EOS.
    texts: what the split was read from.
    tokenizer: that it is encoded by.
  """

  sources: list[Int32[np.ndarray, ' _l']]
  targets: list[Int32[np.ndarray, ' _l']]
  texts: parallel.Pairs
  tokenizer: Tokenizer

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Tokens of the longer side of each pair."""
    sides = zip(self.sources, self.targets, strict=True)
    return np.array([max(map(len, pair)) for pair in sides])

  def batch(
    self, indices: Sequence[int], length: int, size: int
  ) -> stream.Batch:
    """Returns pairs as arrays, filled up with zeros to `size` rows.

    Returns:
      {'source': int32 (n, l); 'source_mask': bool (n, l), False where it is
      filled up; 'tokens': int32 (n, l), what the decoder reads: EOS, then the
      targets but the last; 'targets': int32 (n, l); 'weights': float32 (n, l),
      1 where there is a target; 'index': int32 (n,), which pair of the split,
      -1 in a row that is none}.
    """
    made = _empty(size, length)
    made['index'][: len(indices)] = indices
    eos = self.tokenizer.eos
    for row, i in enumerate(indices):
      source = _cut(self.sources[i], length)
      target = _cut(self.targets[i], length)
      made['source'][row, : len(source)] = source
      made['source_mask'][row, : len(source)] = True
      made['targets'][row, : len(target)] = target
      made['tokens'][row, : len(target)] = [eos, *target[:-1]]
      made['weights'][row, : len(target)] = 1
    return made


def left_out(config: PairDataConfig) -> str:
  """Returns how many pairs of training are too long for it, in words."""
  lengths, longest = (
    load(config, config.train_split).lengths,
    config.buckets[-1],
  )
  count = int(np.sum(lengths > longest))
  return f'{count:,} of {len(lengths):,} pairs: above {longest} tokens'


def train_batches(
  config: PairDataConfig,
  *,
  seed: int,
  start_step: int = 0,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns some rows of every global batch from `start_step` on.

  Args:
    config: the checked config.
    seed: of the order.
    start_step: number of batches to leave out.
    rows: which rows of a batch, such as `prefetch.local_rows` says; None: all.

  Returns:
    An endless iterator over dicts as `Pairs.batch` says, each as long as its
    bucket.

  Raises:
    UserError: the config, the source or one of its pairs is wrong.
  """
  found = load(config, config.train_split)
  local = stream.ascending(config.batch_size, rows)
  order = _order(config, found, config.batch_size, seed)
  order.train(0)  # raises where there is none

  def load_batch(step: int) -> stream.Batch:
    batch = order.train(step)
    indices = batch.indices[local]
    return found.batch(indices.tolist(), batch.length, len(local))

  return stream.of_steps(config, load_batch, range(start_step, stream.FOREVER))


def eval_batches(
  config: PairDataConfig, split: str, *, rows: stream.Rows | None = None
) -> Iterator[stream.Batch]:
  """Returns some rows of each global batch of one pass over `split`.

  Returns:
    An iterator over dicts as in `train_batches`, and in them 'mask': float32
    (n,), 1 for a pair and 0 for a row that is none.

  Raises:
    UserError: as `train_batches`.
  """
  found = load(config, split)
  size = config.eval_batch_size
  local = stream.ascending(size, rows)
  batches = _order(config, found, size, 0).evaluation

  def load_batch(step: int) -> stream.Batch:
    batch = batches[step]
    indices = [int(batch.indices[r]) for r in local if r < len(batch.indices)]
    made = found.batch(indices, batch.length, len(local))
    return made | {'mask': (made['index'] >= 0).astype(np.float32)}

  return stream.of_steps(config, load_batch, range(len(batches)))


def fingerprint(config: PairDataConfig) -> str:
  """Returns a hash of the tokenizer and of the tokens of both splits.

  Raises:
    UserError: as `train_batches`.
  """
  digest = hashlib.sha256()
  for split in (config.train_split, config.eval_split):
    found = load(config, split)
    digest.update(found.tokenizer.fingerprint.encode())
    for tokens in (*found.sources, *found.targets):
      digest.update(tokens.tobytes())
  return digest.hexdigest()


def load(config: PairDataConfig, split: str) -> Pairs:
  """Returns a split as tokens, which are kept.

  Raises:
    UserError: as `train_batches`.
  """
  buckets.check(config.buckets)
  with splits.named(config, split):
    return _load(config.source, split, config.tokenizer)


def encode_sources(
  tokenizer: Tokenizer, texts: Sequence[str], languages: Sequence[str]
) -> list[Int32[np.ndarray, ' _l']]:
  """Returns what the encoder reads of each text: see `Pairs.sources`.

  Raises:
    UserError: the tokenizer has no token `<XX>` of a language XX.
  """
  each = zip(corpus.encode(texts, tokenizer), languages, strict=True)
  return [
    np.append(_language(tokenizer, language), tokens).astype(np.int32)
    for tokens, language in each
  ]


@functools.lru_cache(maxsize=4)
def _load(source: str, split: str, name: str) -> Pairs:
  tokenizer = registry.open_tokenizer(name)
  texts = parallel.open_pairs(source, split)
  encoded = corpus.encode(texts.targets, tokenizer)
  targets = [tokens.astype(np.int32) for tokens in encoded]
  sources = encode_sources(tokenizer, texts.sources, texts.languages)
  return Pairs(sources, targets, texts, tokenizer)


def _language(tokenizer: Tokenizer, language: str) -> Int32[np.ndarray, ' _l']:
  """Returns the token of a language, none where nothing says which it is."""
  if not language:
    return np.zeros(0, np.int32)
  name = f'<{language}>'
  if name not in tokenizer.special:
    expected = f'a tokenizer with the special token {name!r}'
    raise UserError(
      'config.data.tokenizer', sorted(tokenizer.special), expected
    )
  return np.array([tokenizer.special[name]], np.int32)


def _order(
  config: PairDataConfig, found: Pairs, size: int, seed: int
) -> buckets.Order:
  return buckets.Order(found.lengths, config.buckets, size, seed)


def _cut(tokens: Int32[np.ndarray, ' _l'], length: int) -> np.ndarray:
  """Returns at most `length` tokens, EOS the last."""
  if len(tokens) <= length:
    return tokens
  return np.append(tokens[: length - 1], tokens[-1])


def _empty(size: int, length: int) -> stream.Batch:
  ints = ('source', 'tokens', 'targets')
  return {name: np.zeros((size, length), np.int32) for name in ints} | {
    'source_mask': np.zeros((size, length), bool),
    'weights': np.zeros((size, length), np.float32),
    'index': np.full(size, -1, np.int32),
  }
