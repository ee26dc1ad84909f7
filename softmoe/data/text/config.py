"""The fields of text data."""

import dataclasses
from typing import Annotated

from softmoe import config
from softmoe.ranges import COUNT, SIZE


@dataclasses.dataclass(frozen=True)
class TextDataConfig(config.DataConfig):
  """Where documents come from and how they become batches of windows."""

  source: str = 'stdlib'
  train_split: str = 'train[:90%]'
  eval_split: str = 'train[90%:]'
  length: Annotated[int, SIZE] = 256  # tokens of an example
  tokenizer: str = 'bytes'  # or 'bpe:FILE.json' or 'sentencepiece:FILE.model'
  # Tokens that a window of evaluation moves on by; 0: length.
  stride: Annotated[int, COUNT] = 0
