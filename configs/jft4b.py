r"""The paper's long runs: ViT and Soft MoE on JFT-4B, 29,593 classes.

Hyper-parameters of https://arxiv.org/abs/2308.00951 and its authors' code. The
data set is theirs alone: name your own in `config.data`. ARGUMENT is one of
ARGUMENTS, for instance soft-b16.

  python train.py --config=configs/jft4b.py:ARGUMENT --workdir=DIR \
    --config.data.source=tfds:NAME --config.data.num_classes=N

Expected result: not measured by us. The paper's (tables 1 and 8, cooldown of
50k steps), as JFT precision at 1 / ImageNet 10-shot / fine-tuned, in %:

         vit                 soft
  s16    51.3 / 67.6 / 84.0  58.1 / 78.8 / 86.8
  s14    -                   58.9 / 80.0 / 87.2
  b16    56.2 / 76.8 / 86.6  60.0 / 82.0 / 88.0
  l16    59.8 / 81.5 / 88.5  61.3 / 83.7 / 88.9
  h14    59.7 / 83.3 / 88.9  62.1 / 84.3 / 89.1

Parameters and GFLOP an image are the paper's (tests/costs/test_flops.py).
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.models import vit
from softmoe.tasks import classification

# size: (variant, experts of the Soft MoE, steps)
SIZES = {
  's16': ('S/16', 128, 4_000_000),
  's14': ('S/14', 256, 4_000_000),
  'b16': ('B/16', 128, 4_000_000),
  'l16': ('L/16', 128, 4_000_000),
  'h14': ('H/14', 256, 2_000_000),
}
ARGUMENTS = tuple(f'{model}-{s}' for model in ('soft', 'vit') for s in SIZES)


def get_config(argument: str = 'soft-s16') -> ml_collections.ConfigDict:
  """Returns the experiment of an argument such as 'soft-b16'.

  Raises:
    UserError: the argument is none of ARGUMENTS.
  """
  config_lib.check_argument(argument, ARGUMENTS)
  model, size = argument.split('-')
  variant, experts, steps = SIZES[size]
  config = config_lib.default(classification.Config)
  config.name = f'jft4b {argument}'
  config.steps = steps
  config.loss = 'sigmoid'
  config.eval_every = 1000
  config.data.update(
    source='tfds:your_data_set',
    eval_split='validation[:16384]',
    num_classes=29_593,
    image_size=(224, 224),
    channels=3,
    batch_size=4096,
    eval_batch_size=4096,
    threads=16,
  )
  config.data.train.update(crop='inception', flip=True)
  config.data.eval.update(resize=256, crop='central')
  # The authors also decay the router's `scale` by 0.03; here it is free.
  decay = (('head/kernel', 3.0), ('.*/kernel', 0.03))
  config.optimizer.update(learning_rate=1e-3, weight_decay=decay, clip_norm=1.0)
  config.optimizer.schedule.update(
    name='rsqrt', warmup=10_000, timescale=10_000, cooldown=50_000
  )
  config.checkpoint.update(
    every=1000, keep_last=2, keep_every=50_000, keep_best=0
  )
  config.model.update(vit.variant(variant))
  config.model.update(qk_norm=True, dtype='bfloat16', scan=True, remat=True)
  if model == 'soft':
    config.mesh = 'expert:-1'
    config.model.moe.update(
      blocks=vit.last_half(config.model.depth),
      num_experts=experts,
      # As the paper's text; the authors' code starts all experts alike.
      expert_init='independent',
    )
  return config
