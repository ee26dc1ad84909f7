"""The fields of image data."""

import dataclasses

from softmoe import config


@dataclasses.dataclass(frozen=True)
class TransformConfig:
  """What happens to one image between its source and the batch."""

  resize: int = 0  # shorter side in pixels, before the crop; 0: off
  crop: str = 'none'  # 'none', 'central', 'inception' or 'pad'
  min_area: float = 0.05  # inception crop: smallest share of the image
  padding: int = 4  # 'pad': pixels of reflection before a random crop
  flip: bool = False
  randaugment_layers: int = 0
  randaugment_magnitude: int = 10


@dataclasses.dataclass(frozen=True)
class ImageDataConfig(config.DataConfig):
  """Where images come from and how they become batches."""

  source: str = 'digits'
  num_classes: int = 10
  image_size: tuple[int, int] = (8, 8)  # height, width in pixels
  channels: int = 1
  value_range: tuple[float, float] = (-1.0, 1.0)
  train: TransformConfig = TransformConfig()
  eval: TransformConfig = TransformConfig()
