"""Fine-tuning of a ViT or Soft MoE to ImageNet-1k, at 384 x 384 pixels.

Soft MoE (https://arxiv.org/abs/2308.00951) fine-tunes at this resolution with
the slots of the pre-training, and says no more; so a token has fewer of them.
The rest is the recipe of V-MoE (https://arxiv.org/abs/2106.05974): SGD with
momentum, 10,000 steps, a cosine without weight decay. The models are those of
configs/imagenet1k.py. ARGUMENT is one of ARGUMENTS, for instance soft-s16.

  python train.py --config=configs/finetune.py:ARGUMENT --workdir=DIR \
    --config.init=WORKDIR --config.init_head=reset

WORKDIR may be a weights file: docs/weights.md. What else there is to fine-tune
by, and MoEs out of a dense WORKDIR: docs/finetuning.md. Expected result: not
measured by us yet.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.models import vit
from softmoe.tasks import classification

# size: (variant, experts of the Soft MoE)
SIZES = {
  's16': ('S/16', 128),
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
  config.name = f'finetune {argument}'
  config.steps = 10_000
  config.eval_every = 1000
  config.data.update(
    source='tfds:imagenet2012',
    eval_split='validation',
    num_classes=1000,
    image_size=(384, 384),
    channels=3,
    batch_size=1024,
    eval_batch_size=1024,
    threads=16,
  )
  config.data.train.update(crop='inception', flip=True)
  config.data.eval.update(resize=384, crop='central')
  config.optimizer.update(
    name='sgd', momentum=0.9, learning_rate=3e-3, clip_norm=10.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=500)
  config.model.update(vit.variant(variant))
  config.model.update(dtype='bfloat16', scan=True)
  if model == 'soft':
    config.mesh = 'expert:-1'
    config.model.moe.update(
      blocks=vit.last_half(config.model.depth), num_experts=experts
    )
  return config
