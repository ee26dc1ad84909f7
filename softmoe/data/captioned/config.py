"""The fields of images with texts."""

import dataclasses
from typing import Annotated

from softmoe.data.images.config import PictureDataConfig
from softmoe.ranges import SIZE


@dataclasses.dataclass(frozen=True)
class CaptionedDataConfig(PictureDataConfig):
  """Where images and their texts come from and how they become batches."""

  # Of labelled images with `captions`; or 'tfds:NAME' or 'webdataset:PATH',
  # with texts of their own.
  source: str = ''
  # JSON lines with the texts of each class: a file, or a folder of them.
  captions: str = ''
  tokenizer: str = 'bytes'  # or 'bpe:FILE.json' or 'sentencepiece:FILE.model'
  # Tokens of a text, with EOS; the rest is cut.
  length: Annotated[int, SIZE] = 64
