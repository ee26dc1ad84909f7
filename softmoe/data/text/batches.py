"""Batches of windows of tokens: see `windows` for what is in them."""

import functools
import hashlib
from collections.abc import Iterator

import numpy as np

from softmoe.data import splits, stream
from softmoe.data.text import corpus, sources, tokens, windows
from softmoe.data.text.config import TextDataConfig
from softmoe.data.text.tokenizers import registry
from softmoe.errors import UserError


def train_batches(
  config: TextDataConfig,
  *,
  seed: int,
  start_step: int = 0,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns some rows of every global batch from `start_step` on.

  The windows tile the stream of `config.train_split`; see
  `stream.train_batches` for their order.

  Args:
    config: the checked config.
    seed: of the order.
    start_step: number of batches to leave out.
    rows: which rows of a batch, such as `prefetch.local_rows` says; None: all.

  Returns:
    An endless iterator over dicts of (n, config.length) arrays: 'tokens',
    'targets', 'weights', 'segments', 'positions' and 'bytes', as
    `windows.Windows.example` says.

  Raises:
    UserError: the config, the source or one of its documents is wrong.
  """
  found = _windows(config, config.train_split, config.length)

  def load(index: int, rng: np.random.Generator) -> stream.Example:
    del rng
    return found.example(index)

  return stream.train_batches(
    config, len(found), load, seed=seed, start_step=start_step, rows=rows
  )


def eval_batches(
  config: TextDataConfig,
  split: str,
  *,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns some rows of each global batch of one pass over `split`, in order.

  A window begins `config.stride` tokens behind the one before, and counts the
  targets that are new in it.

  Args:
    config: the checked config.
    split: any split of the source.
    rows: as in `train_batches`.

  Returns:
    An iterator over dicts as in `train_batches`, and in them 'share', as
    `windows.Windows.eval_example` says, and 'mask': float32 (n,), 1 for an
    example and 0 for padding, where all arrays are 0.

  Raises:
    UserError: as `train_batches`.
  """
  found = _windows(config, split, config.stride or config.length)
  return stream.eval_batches(config, len(found), found.eval_example, rows=rows)


def fingerprint(config: TextDataConfig) -> str:
  """Returns a hash of the tokenizer and of the tokens of both splits.

  It reads and tokenizes all of them, once in a process, so whatever is wrong
  with a document is told here.

  Raises:
    UserError: as `train_batches`.
  """
  digest = hashlib.sha256()
  for split in (config.train_split, config.eval_split):
    found = _read(config, split)
    digest.update(found.tokenizer.fingerprint.encode())
    digest.update(found.fingerprint.encode())
  return digest.hexdigest()


def _windows(
  config: TextDataConfig, split: str, stride: int
) -> windows.Windows:
  length = config.length
  if stride > length:
    expected = f'0 to config.data.length, {length}'
    raise UserError('config.data.stride', stride, expected)
  return windows.Windows(_read(config, split), length, stride)


def _read(config: TextDataConfig, split: str) -> corpus.Corpus:
  with splits.named(config, split):
    return _load(config.source, config.tokenizer, split)


@functools.lru_cache(maxsize=4)
def _load(source: str, tokenizer: str, split: str) -> corpus.Corpus:
  made = registry.open_tokenizer(tokenizer)
  kind, _, argument = source.partition(':')
  if kind == 'tokens':
    return tokens.open_split(argument, split, tokenizer, made)
  return corpus.of_documents(sources.open_source(source, split), made)
