r"""The paper's contrastive models: ViT and Soft MoE beside a tower of texts.

Hyper-parameters of https://arxiv.org/abs/2308.00951 and its authors' code, with
the loss of SigLIP (https://arxiv.org/abs/2303.15343). Theirs trained on
LAION-400M: name your own images and texts in `config.data`, and the file of a
tokenizer of 32,000 tokens. ARGUMENT is one of ARGUMENTS, for instance soft-b16.

  python train.py --config=configs/image_text.py:ARGUMENT --workdir=DIR \
    --config.data.source=tfds:NAME

or webdataset:DIR, with DIR/train/*.tar and DIR/val/*.tar. A data set has an
image and one or more texts an example, as `coco_captions`. Zero-shot accuracy
on ImageNet takes its classes' names, docs/contrastive.md:

    --config.zeroshot.source=tfds:imagenet2012 \
    --config.zeroshot.split=validation --config.zeroshot.captions=FILE.jsonl

Expected result: not measured by us.
"""

import ml_collections

from softmoe import config as config_lib
from softmoe.models import vit
from softmoe.tasks import contrastive

# size: (variant, experts of the Soft MoE)
SIZES = {
  's16': ('S/16', 128),
  's14': ('S/14', 256),
  'b16': ('B/16', 128),
  'l16': ('L/16', 128),
}
ARGUMENTS = tuple(f'{model}-{s}' for model in ('soft', 'vit') for s in SIZES)


def get_config(argument: str = 'soft-s16') -> ml_collections.ConfigDict:
  """Returns the experiment of an argument such as 'soft-b16'.

  Raises:
    UserError: the argument is none of ARGUMENTS.
  """
  config_lib.check_argument(argument, ARGUMENTS)
  model, size = argument.split('-')
  variant, experts = SIZES[size]
  config = config_lib.default(contrastive.Config)
  config.name = f'image_text {argument}'
  config.steps = 750_000
  config.eval_every = 10_000
  config.data.update(
    source='tfds:your_data_set',
    eval_split='val',
    tokenizer='sentencepiece:data/image_text.model',
    length=16,
    image_size=(256, 256),
    channels=3,
    batch_size=16_384,
    eval_batch_size=1024,
    threads=16,
  )
  if model == 'soft':
    config.data.train.update(crop='inception')
  config.zeroshot.templates = ('{}', 'a photo of a {}', 'a picture of a {}')
  config.optimizer.update(
    learning_rate=1e-3, weight_decay=(('.*/kernel', 0.1),), clip_norm=1.0
  )
  config.optimizer.schedule.update(
    name='rsqrt', warmup=20_000, timescale=10_000, cooldown=20_000
  )
  config.checkpoint.update(
    every=1000, keep_last=2, keep_every=50_000, keep_best=0
  )
  big = dict(qk_norm=True, dtype='bfloat16', scan=True, remat=True)
  config.model.update(vit.variant(variant))
  config.model.update(**big)
  if model == 'soft':
    config.mesh = 'expert:-1'
    config.model.moe.update(
      blocks=vit.last_half(config.model.depth), num_experts=experts
    )
  config.text.update(
    width=768, depth=12, mlp_dim=3072, num_heads=12, vocab_size=32_000, **big
  )
  return config
