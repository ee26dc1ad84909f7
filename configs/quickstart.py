"""A Soft MoE and a ViT of equal cost on scikit-learn's handwritten digits.

Soft MoE: Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951.

  make quickstart

trains both and prints the table; one of them alone:

  python train.py --config=configs/quickstart.py:soft --workdir=runs/soft

The digits are real (1,437 to train on, 360 to test, 8 x 8 pixels) and come
inside scikit-learn, so nothing is downloaded. Four patches, four slots. It is
a smoke test: with 360 images one percent is 3.6 of them, and the order of the
two models differs between machines.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.tasks import classification

ARGUMENTS = ('soft', 'vit')


def get_config(model: str = 'soft') -> ml_collections.ConfigDict:
  """Returns the config of 'soft' or 'vit'."""
  config_lib.check_argument(model, ARGUMENTS)
  config = config_lib.default(classification.Config)
  config.name = {'soft': 'Soft MoE', 'vit': 'ViT'}[model]
  config.steps = 1500
  config.log_every = 150
  config.eval_every = 150

  config.data.source = 'digits'
  config.data.batch_size = 128
  config.data.train.update(crop='pad', padding=1)

  config.model.update(
    patch_size=(4, 4), width=64, depth=4, mlp_dim=256, num_heads=4
  )
  if model == 'soft':  # the last half of the blocks, as in the paper
    config.model.moe.update(blocks=(2, 3), num_experts=4, slots_per_expert=1)

  config.optimizer.update(
    learning_rate=5e-3, weight_decay=(('.*/kernel', 0.05),), clip_norm=1.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=100)
  config.checkpoint.every = 500
  return config
