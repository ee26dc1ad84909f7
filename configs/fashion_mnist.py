"""A ViT and mixtures of experts of like cost on Fashion-MNIST's 60,000 images.

Soft MoE: Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951; the other
routers are in docs/routers.md. ARGUMENT is one of ARGUMENTS below.

  apt-get install dataset-fashion-mnist  # or --config.data.source=idx:DIR
  python train.py --config=configs/fashion_mnist.py:ARGUMENT --workdir=DIR

Expected result, on the 10,000 test images, after 14,000 steps on 2 cores of an
x86-64 machine (Python 3.11, jax 0.10.2) that other work kept busy, so that the
times are upper bounds: alone, the first steps of soft ran at 1,085 images/s,
which makes 28 minutes.

  soft   91.17 %   5.55 M parameters   0.0368 GFLOP an image   1 h 12 min
  vit    90.91 %   1.20 M parameters   0.0395 GFLOP an image      36 min

The others were not trained to the end.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.tasks import classification

# Twelve experts like the ViT's MLP for the 16 tokens of an image, in the last
# half of the blocks; sparse routers look at 8 images at a time, as V-MoE did.
SOFT = dict(num_experts=12)
SPARSE = dict(num_experts=12, capacity_factor=1.0, group_size=8)
VMOE = SPARSE | dict(
  k=1,
  noise_std=1.0,
  batch_priority=True,
  losses=(('importance', 0.005), ('load', 0.005)),
)
# The same weights as four times as many experts of a quarter of the width.
SMALL = dict(num_experts=48, expert_dim=128, group_size=8)
MOE = {
  'vit': {},
  'soft': SOFT,
  'identity': SOFT,
  'uniform': SOFT,
  'uniform_soft': SOFT,
  'soft_uniform': SOFT,
  'mixture_of_tokens': SOFT | dict(group_size=16),
  'tokens': VMOE,
  'tokens_k2': VMOE | dict(k=2),
  'experts': SPARSE,
  'switch': SPARSE | dict(k=1, losses=(('switch', 0.01),)),
  'gshard': SPARSE | dict(k=2, normalize=True, losses=(('gshard', 0.01),)),
  'deepseek': SMALL | dict(k=3, shared_dim=128, losses=(('switch', 0.01),)),
  'null': SMALL | dict(k=8, num_null=48, losses=(('switch', 0.01),)),
  'bias': SMALL | dict(k=4),
  'relu': SMALL | dict(k=4),
  'xmoe': SMALL | dict(capacity_factor=4.0),
  'xmoe_dropless': SMALL,
}
ROUTERS = {
  'tokens': 'tokens_choice',
  'tokens_k2': 'tokens_choice',
  'experts': 'experts_choice',
  'switch': 'tokens_choice',
  'gshard': 'tokens_choice',
  'deepseek': 'tokens_choice',
  'null': 'tokens_choice',
  'bias': 'bias_balanced',
  'xmoe': 'threshold',
  'xmoe_dropless': 'threshold',
}
NAMES = {'vit': 'ViT', 'soft': 'Soft MoE', 'xmoe': 'XMoE'}
ARGUMENTS = tuple(MOE)


def get_config(argument: str = 'soft') -> ml_collections.ConfigDict:
  """Returns the config of a ViT whose last half routes as ARGUMENT says."""
  config_lib.check_argument(argument, ARGUMENTS)
  config = config_lib.default(classification.Config)
  config.name = NAMES.get(argument, argument.replace('_', ' ').capitalize())
  config.steps = 14_000  # 30 epochs
  config.log_every = 100
  config.eval_every = 1400

  config.data.update(
    source='idx:/usr/share/datasets/fashion-mnist',
    image_size=(28, 28),
    batch_size=128,
  )
  config.data.train.update(crop='pad', padding=1, flip=True)

  config.model.update(
    patch_size=(7, 7), width=128, depth=6, mlp_dim=512, num_heads=4
  )
  if argument != 'vit':
    config.model.moe.update(
      router=ROUTERS.get(argument, argument), blocks=(3, 4, 5), **MOE[argument]
    )

  config.optimizer.update(
    learning_rate=2e-3, weight_decay=(('.*/kernel', 0.1),), clip_norm=1.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=400)
  config.checkpoint.every = 1400
  return config
