r"""Translation into English with MoE layers in the encoder: XMoE's setting.

Yang et al. 2024, https://arxiv.org/abs/2403.18926: a Transformer base, every
second block of its encoder a mixture; and one for two cores. All mixtures have
as many parameters. Nothing is dropped. ARGUMENT is one of ARGUMENTS, for
instance xmoe (the paper's size) or xmoe_cpu. Data: docs/corpora.md.

  python -m softmoe.data.text.train_tokenizer bpe \
    'text:data/libreoffice-help/train.*.tsv' data/help.json \
    --vocab_size=8192 --special '<de>' '<ru>' '<zh-CN>' '<fr>' '<es>' '<ja>'
  python train.py --config=configs/translate.py:ARGUMENT --workdir=DIR \
    --config.data.source=parallel:data/libreoffice-help
"""

from typing import Any

import ml_collections

from softmoe import config as config_lib
from softmoe.tasks import translation

SWITCH = dict(losses=(('switch', 0.01),))
# How many experts of which part of the MLP, at the paper's size and here.
MOE: dict[str, dict[str, Any]] = {
  'dense': {},
  'top1': dict(router='tokens_choice', num_experts=(32, 8), k=1) | SWITCH,
  'topk': dict(router='tokens_choice', num_experts=(64, 16), k=2) | SWITCH,
  'xmoe': dict(router='threshold', num_experts=(64, 16), threshold=0.9),
}
BASE = dict(width=512, depth=6, mlp_dim=2048, num_heads=8, dropout=0.3)
SMALL = dict(width=128, depth=4, mlp_dim=512, num_heads=4, dropout=0.1)
ARGUMENTS = tuple(f'{model}{size}' for size in ('', '_cpu') for model in MOE)


def get_config(argument: str = 'xmoe_cpu') -> ml_collections.ConfigDict:
  """Returns the config of an encoder-decoder."""
  config_lib.check_argument(argument, ARGUMENTS)
  config = config_lib.default(translation.Config)
  config.name = argument
  model, small = argument.removesuffix('_cpu'), argument.endswith('_cpu')
  config.model.update(norm='post', activation='relu', loss_chunk=2048)
  config.model.update(**(SMALL if small else BASE))
  if small:
    config.steps, config.log_every, config.eval_every = 4000, 100, 2000
    config.data.update(
      source='parallel:data/libreoffice-help',
      tokenizer='bpe:data/help.json',
      batch_size=64,
      eval_batch_size=64,
      buckets=(16, 32, 64, 96),
    )
    config.model.vocab_size = 8192
  else:
    config.steps, config.eval_every = 20_000, 2000
    # About a million tokens a step.
    config.data.update(
      source='tfds:wmt14_translate/de-en',
      tokenizer='sentencepiece:data/wmt.model',
      eval_split='validation',
      batch_size=32_768,
      eval_batch_size=1024,
      buckets=(16, 32, 64, 128, 256),
    )
    config.model.vocab_size = 32_000
    config.model.dtype = 'bfloat16'
    config.optimizer.accumulate = 16

  if model != 'dense':
    fields = dict(MOE[model])
    many, few = fields.pop('num_experts')
    # Of all experts together: 32 times the dense MLP at full size, 8 here.
    experts, together = (few, 8) if small else (many, 32)
    config.model.moe.update(
      blocks=tuple(range(1, config.model.depth, 2)),
      num_experts=experts,
      expert_dim=together * config.model.mlp_dim // experts,
      **fields,
    )

  config.optimizer.update(
    learning_rate=1e-3 if small else 5e-4,
    b2=0.98,
    weight_decay=(('.*/kernel', 1e-4),),
  )
  warmup = 400 if small else 512
  config.optimizer.schedule.update(
    name='rsqrt', warmup=warmup, timescale=warmup
  )
  return config
