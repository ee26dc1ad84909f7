"""The fields of text data."""

import dataclasses

from softmoe import config


@dataclasses.dataclass(frozen=True)
class TextDataConfig(config.DataConfig):
  """Where documents come from and how they become batches of windows."""

  source: str = 'stdlib'
  train_split: str = 'train[:90%]'
  eval_split: str = 'train[90%:]'
  length: int = 256  # tokens of an example
  tokenizer: str = 'bytes'  # or 'bpe:FILE.json' or 'sentencepiece:FILE.model'
  stride: int = 0  # tokens that a window of evaluation moves on by; 0: length
