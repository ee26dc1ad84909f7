"""ViT and Soft MoE of every size, from scratch on ImageNet-1k.

The recipe of plain ViT-S/16 (https://arxiv.org/abs/2205.01580) for all sizes:
90 epochs, mixup, RandAugment, cosine; here with a learned position embedding.
Soft MoE (https://arxiv.org/abs/2308.00951): the last half of the blocks, one
slot an expert, so many experts that it costs less than the ViT. ARGUMENT is
one of ARGUMENTS, for instance soft-s16.

  tfds build imagenet2012 --file_format=array_record
  python train.py --config=configs/imagenet1k.py:ARGUMENT --workdir=DIR

Expected result: not measured by us yet. The first paper gives vit-s16 more
than 76 % top-1 accuracy after 90 epochs, and 80 % after 300 (--config.steps=
375342). No paper trains a Soft MoE on ImageNet-1k alone. GFLOP an image, by
`softmoe.costs.flops`, as vit / soft: ti16 2.53 / 2.46, s32 2.26 / 2.04,
s16 9.21 / 8.60, b32 8.67 / 7.75, b16 35.1 / 31.9, l16 122.8 / 111.0.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.models import vit
from softmoe.tasks import classification

# size: (variant, experts of the Soft MoE)
SIZES = {
  'ti16': ('Ti/16', 128),
  's32': ('S/32', 32),
  's16': ('S/16', 128),
  'b32': ('B/32', 32),
  'b16': ('B/16', 128),
  'l16': ('L/16', 128),
}
ARGUMENTS = tuple(f'{model}-{s}' for model in ('soft', 'vit') for s in SIZES)


def get_config(argument: str = 'soft-s16') -> ml_collections.ConfigDict:
  """Returns the experiment of an argument such as 'soft-s16'.

  Raises:
    UserError: the argument is none of ARGUMENTS.
  """
  config_lib.check_argument(argument, ARGUMENTS)
  model, size = argument.split('-')
  variant, experts = SIZES[size]
  config = config_lib.default(classification.Config)
  config.name = f'imagenet1k {argument}'
  config.steps = 90 * 1_281_167 // 1024
  config.mixup = 0.2
  config.eval_every = 2500
  config.data.update(
    source='tfds:imagenet2012',
    eval_split='validation',
    num_classes=1000,
    image_size=(224, 224),
    channels=3,
    batch_size=1024,
    eval_batch_size=1024,
    threads=16,
  )
  config.data.train.update(
    crop='inception', flip=True, randaugment_layers=2, randaugment_magnitude=10
  )
  config.data.eval.update(resize=256, crop='central')
  # Decay is relative to the learning rate: 1e-4 a step at the peak.
  config.optimizer.update(
    learning_rate=1e-3, weight_decay=(('.*/kernel', 0.1),), clip_norm=1.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=10_000)
  config.model.update(vit.variant(variant))
  config.model.update(dtype='bfloat16', scan=True)
  if model == 'soft':
    config.mesh = 'expert:-1'
    config.model.moe.update(
      blocks=vit.last_half(config.model.depth), num_experts=experts
    )
  return config
