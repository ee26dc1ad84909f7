"""A config that trains in seconds: the experiment that the tests run."""

import ml_collections

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.tasks import classification


def get_config(model: str = 'soft') -> ml_collections.ConfigDict:
  config_lib.check_argument(model, ('soft', 'vit'))
  config = config_lib.default(classification.Config)
  config.steps = 8
  config.mixup = 0.3
  config.label_smoothing = 0.1
  config.log_every = 2
  config.eval_every = 3
  config.checkpoint.every = 2
  config.data.batch_size = 16
  config.data.eval_batch_size = 64
  config.data.eval_split = 'test[:100]'
  config.data.train.update(crop='pad', padding=1)
  config.model.update(
    patch_size=(4, 4), width=16, depth=2, mlp_dim=32, num_heads=2
  )
  config.optimizer.learning_rate = 1e-2
  if model == 'soft':
    config.model.moe.update(blocks=(1,), num_experts=8, slots_per_expert=1)
  return config


def parse(model: str = 'soft', **changes) -> classification.Config:
  """Returns the config with some fields changed; `a__b` is the field a.b."""
  config = get_config(model)
  config.update_from_flattened_dict(
    {path.replace('__', '.'): value for path, value in changes.items()}
  )
  return experiment_lib.parse(config)
