"""Batches of images, each with one of its texts as tokens.

Axes: `n` examples of a batch, `l` tokens of a text.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from softmoe.data import stream
from softmoe.data.captioned import sources
from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.data.images import transforms
from softmoe.data.text.tokenizers.tokenizer import Tokenizer

Encode = Callable[[str], dict[str, np.ndarray]]
_KEPT = 2**16  # texts whose tokens are not made again


def train_batches(
  config: CaptionedDataConfig,
  tokenizer: Tokenizer,
  *,
  seed: int,
  start_step: int = 0,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns some rows of every global batch from `start_step` on.

  Args:
    config: the checked config.
    tokenizer: of the texts.
    seed: of the order, of the augmentation and of which text an image gets.
    start_step: number of batches to leave out.
    rows: which rows of a batch, such as `prefetch.local_rows` says; None: all.

  Returns:
    An endless iterator over {'image': uint8 (n, h, w, c), 'tokens': int32
    (n, l), 'text_mask': bool (n, l), False where a token only fills up,
    'label': int32 (n,), the group}; see `stream.train_batches`.

  Raises:
    UserError: the config, the source or one of its examples is wrong.
  """
  found = sources.open_split(config, config.train_split)
  transform = transforms.train_transform(config)
  encode = encoder(tokenizer, config.length)

  def load(index: int, rng: np.random.Generator) -> stream.Example:
    example = found.images[index]
    texts = found.texts[example['label']]
    image = transform(example['image'], rng)
    text = texts[int(rng.integers(len(texts)))]
    return _example(image, example['label'], encode(text))

  return stream.train_batches(
    config, len(found.images), load, seed=seed, start_step=start_step, rows=rows
  )


def eval_batches(
  config: CaptionedDataConfig,
  tokenizer: Tokenizer,
  split: str,
  *,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns some rows of each global batch of one pass over `split`, in order.

  Images take the texts of their group in turn.

  Returns:
    An iterator over dicts as in `train_batches`, and in them 'mask': float32
    (n,), 1 for an example and 0 for padding.

  Raises:
    UserError: as `train_batches`.
  """
  found = sources.open_split(config, split)
  transform = transforms.eval_transform(config)
  encode = encoder(tokenizer, config.length)

  def load(index: int) -> stream.Example:
    example = found.images[index]
    texts = found.texts[example['label']]
    text = texts[index % len(texts)]
    return _example(transform(example['image']), example['label'], encode(text))

  return stream.eval_batches(config, len(found.images), load, rows=rows)


def text_batches(
  config: CaptionedDataConfig,
  tokenizer: Tokenizer,
  texts: Sequence[str],
  *,
  rows: stream.Rows | None = None,
) -> Iterator[stream.Batch]:
  """Returns batches of texts alone, in order, as `eval_batches` has them."""
  encode = encoder(tokenizer, config.length)
  load = lambda index: encode(texts[index])
  return stream.eval_batches(config, len(texts), load, rows=rows)


def encoder(tokenizer: Tokenizer, length: int) -> Encode:
  """Returns a function from a text to its tokens and their mask.

  EOS is the last token, also of a text that is cut.
  """

  @functools.lru_cache(maxsize=_KEPT)
  def encode(text: str) -> dict[str, np.ndarray]:
    tokens = np.zeros(length, np.int32)
    found = tokenizer.encode(text)[: length - 1]
    tokens[: len(found)] = found
    tokens[len(found)] = tokenizer.eos
    return {'tokens': tokens, 'text_mask': np.arange(length) <= len(found)}

  return encode


def _example(
  image: np.ndarray, label: int, text: dict[str, np.ndarray]
) -> stream.Example:
  return {'image': image, 'label': np.int32(label)} | text
