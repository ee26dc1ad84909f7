"""The fields of image data."""

import dataclasses
from typing import Annotated

from softmoe import config
from softmoe.ranges import SIZE, OneOf, Range

MAX_PIXELS = 2**27
Pixels = Annotated[int, Range(1, 2**14)]  # of a side
Value = Annotated[float, Range(-1e6, 1e6)]


@dataclasses.dataclass(frozen=True)
class TransformConfig:
  """What happens to one image between its source and the batch."""

  # Shorter side in pixels, before the crop; 0: off.
  resize: Annotated[int, Range(0, 4096)] = 0
  crop: str = 'none'  # 'none', 'central', 'inception' or 'pad'
  # Inception crop: smallest share of the image.
  min_area: Annotated[float, Range(0, 1, without=0)] = 0.05
  # 'pad': pixels of reflection before a random crop.
  padding: Annotated[int, Range(0, 1024)] = 4
  flip: bool = False
  randaugment_layers: Annotated[int, Range(0, 100)] = 0
  # 10 is the end of the scale; larger ones extrapolate.
  randaugment_magnitude: Annotated[int, Range(0, 30)] = 10


@dataclasses.dataclass(frozen=True)
class PictureDataConfig(config.DataConfig):
  """How images become arrays of one shape."""

  image_size: tuple[Pixels, Pixels] = (8, 8)  # height, width
  channels: Annotated[int, OneOf((1, 3))] = 1
  value_range: tuple[Value, Value] = (-1.0, 1.0)  # of 0 and of 255
  # Height times width of the largest image that is decoded.
  max_pixels: Annotated[int, Range(1, 2**31 - 1)] = MAX_PIXELS
  train: TransformConfig = TransformConfig()
  eval: TransformConfig = TransformConfig()


@dataclasses.dataclass(frozen=True)
class ImageDataConfig(PictureDataConfig):
  """Where labelled images come from and how they become batches."""

  source: str = 'digits'
  num_classes: Annotated[int, SIZE] = 10
