"""A small XMoE language model on the source text of Python's standard library.

The text is on every machine, so nothing is downloaded; it differs from one
Python to the next, so a run keeps its hash and goes on with no other. Three
minutes on two cores, to 3.28 bits a byte. Threshold routing: Yang et al. 2024,
https://arxiv.org/abs/2403.18926. ARGUMENT is one of ARGUMENTS below.

  python train.py --config=configs/lm_quickstart.py --workdir=DIR
  python -m softmoe.generate --workdir=DIR --prompt='def '
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.tasks import language

ARGUMENTS = ('dense', 'xmoe')


def get_config(argument: str = 'xmoe') -> ml_collections.ConfigDict:
  """Returns the config of a decoder, dense or with small experts."""
  config_lib.check_argument(argument, ARGUMENTS)
  config = config_lib.default(language.Config)
  config.name = {'dense': 'Dense', 'xmoe': 'XMoE'}[argument]
  config.steps = 200
  config.log_every = 50
  config.eval_every = 100

  config.data.update(
    source='stdlib',
    tokenizer='bytes',
    train_split='train[:95%]',
    eval_split='train[99%:]',
    length=128,
    batch_size=32,
    eval_batch_size=64,
  )

  config.model.update(width=128, depth=4, mlp_dim=512, num_heads=4)
  config.model.positions = 'rotary'
  if argument == 'xmoe':
    config.model.moe.update(
      router='threshold',
      threshold=0.9,
      blocks=(1, 3),
      num_experts=16,
      expert_dim=128,
    )

  config.optimizer.update(
    learning_rate=3e-3, weight_decay=(('.*/kernel', 0.1),), clip_norm=1.0
  )
  config.optimizer.schedule.update(name='cosine', warmup=20)
  config.checkpoint.every = 100
  config.sample.update(tokens=200, prompt='def ', temperature=0.8)
  return config
