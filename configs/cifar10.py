"""ViT-Ti/4 and a Soft MoE of it, from scratch on CIFAR-10.

Soft MoE: https://arxiv.org/abs/2308.00951. The recipe is that of plain ViT on
ImageNet-1k (https://arxiv.org/abs/2205.01580), with more epochs for the fewer
images: 205 of 50,000. ARGUMENT is one of ARGUMENTS.

  tfds build cifar10 --file_format=array_record
  python train.py --config=configs/cifar10.py:ARGUMENT --workdir=DIR

Expected result: not measured by us yet. The cost is, by `softmoe.costs.flops`:
vit 5.4 M parameters and 0.728 GFLOP an image; soft 32.0 M and 0.692, with 48
slots (16 experts) for the 64 tokens.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.models import vit
from softmoe.tasks import classification

ARGUMENTS = ('soft', 'vit')


def get_config(argument: str = 'soft') -> ml_collections.ConfigDict:
  """Returns the experiment of an argument.

  Raises:
    UserError: the argument is none of ARGUMENTS.
  """
  config_lib.check_argument(argument, ARGUMENTS)
  config = config_lib.default(classification.Config)
  config.name = f'cifar10 {argument}'
  config.steps = 20_000
  config.mixup = 0.2
  config.eval_every = 1000
  config.data.update(
    source='tfds:cifar10', image_size=(32, 32), channels=3, batch_size=512
  )
  config.data.train.update(crop='pad', padding=4, flip=True)
  config.optimizer.update(
    learning_rate=1e-3, weight_decay=(('.*/kernel', 0.1),), clip_norm=1.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=1000)
  config.model.update(vit.variant('Ti/4'))
  if argument == 'soft':
    config.mesh = 'expert:-1'
    config.model.moe.update(
      blocks=vit.last_half(config.model.depth),
      num_experts=16,
      slots_per_expert=3,
    )
  return config
