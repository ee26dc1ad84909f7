"""Image classification."""

import dataclasses

from softmoe import config as config_lib
from softmoe.data.images.config import ImageDataConfig
from softmoe.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Config):
  """An experiment in image classification."""

  loss: str = 'softmax'  # or 'sigmoid'
  label_smoothing: float = 0.0
  mixup: float = 0.0  # alpha of the beta distribution; 0: off
  model: ViTConfig = ViTConfig()
  data: ImageDataConfig = ImageDataConfig()
