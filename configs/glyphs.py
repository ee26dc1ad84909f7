"""A narrow ViT and mixtures of experts on 2,965 kanji in many typefaces.

Soft MoE: Puigcerver et al. 2023, https://arxiv.org/abs/2308.00951; the other
routers are in docs/routers.md, the images, which are rendered type and no
photographs, in docs/glyphs.md. ARGUMENT is one of ARGUMENTS below.

  python -m softmoe.data.prepare glyphs data/glyphs  # fonts: docs/glyphs.md
  python train.py --config=configs/glyphs.py:ARGUMENT --workdir=DIR

--config.model.width=64 makes every width twice as large: the MLPs follow.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.tasks import classification

# Sixteen experts like the ViT's MLP for the 16 tokens of an image, in the last
# half of the blocks; sparse routers look at 16 images at a time.
SOFT = dict(num_experts=16)
SPARSE = dict(num_experts=16, capacity_factor=1.0, group_size=16)
VMOE = SPARSE | dict(
  noise_std=1.0,
  batch_priority=True,
  losses=(('importance', 0.005), ('load', 0.005)),
)
# The same weights as four times as many experts of a quarter of the width.
SMALL = dict(num_experts=64, group_size=16)
MOE = {
  'vit': {},
  'soft': SOFT,
  'identity': SOFT,
  'uniform': SOFT,
  'uniform_soft': SOFT,
  'soft_uniform': SOFT,
  'mixture_of_tokens': SOFT | dict(group_size=16),
  'tokens': VMOE | dict(k=1),
  'tokens_k2': VMOE | dict(k=2),
  'experts': SPARSE,
  'switch': SPARSE | dict(k=1, losses=(('switch', 0.01),)),
  'gshard': SPARSE | dict(k=2, normalize=True, losses=(('gshard', 0.01),)),
  'deepseek': SMALL | dict(k=3, losses=(('switch', 0.01),)),
  'null': SMALL | dict(k=8, num_null=64, losses=(('switch', 0.01),)),
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
  config.steps = 4000
  config.log_every = 100
  config.eval_every = 1000

  config.data.update(
    source='glyphs:data/glyphs',
    num_classes=2965,
    image_size=(32, 32),
    batch_size=256,
    eval_split='val',
  )
  config.data.train.update(crop='pad', padding=2)

  config.model.update(patch_size=(8, 8), width=32, depth=6, num_heads=4)
  width = config.model.get_ref('width')
  config.model.mlp_dim = 4 * width
  if argument != 'vit':
    config.model.moe.update(
      router=ROUTERS.get(argument, argument), blocks=(3, 4, 5), **MOE[argument]
    )
  if MOE[argument].get('num_experts') == SMALL['num_experts']:
    config.model.moe.expert_dim = width
  if argument == 'deepseek':
    config.model.moe.shared_dim = width

  # The best of eight settings for ViT, Soft MoE and Experts Choice, and within
  # 0.1 % of it for Tokens Choice: configs/suites/tune.py.
  config.optimizer.update(
    learning_rate=16e-3, weight_decay=(('.*/kernel', 0.2),), clip_norm=1.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=400)
  config.checkpoint.every = 1000
  return config
