"""Small runs at random weights to inspect."""

import dataclasses

from softmoe.data.text.pairs import PairDataConfig
from softmoe.models import config as model_config
from softmoe.tasks import translation
from tests import untrained

CAPACITY = dict(
  model__moe__router='tokens_choice',
  model__moe__k=2,
  model__moe__capacity_factor=0.5,
  model__moe__slots_per_expert=1,
)


def images(tiny, workdir, **changes):
  """Makes a run of images with MoE layers in both its blocks."""
  fields = dict(mesh='data:8', model__moe__blocks=(0, 1)) | changes
  return untrained.run(tiny('soft', **fields), workdir)


def text(workdir, **moe):
  """Makes a run of text, whose vocabulary are bytes."""
  moe = model_config.MoEConfig(**moe)
  return untrained.run(untrained.text(moe=moe), workdir)


def pairs(tmp_path, short, long):
  """Makes a run of translation, of so many pairs of two lengths."""
  lines = [*['c\td'] * short, *[f'{"a" * 8}\t{"b" * 10}'] * long]
  folder = tmp_path / 'pairs'
  folder.mkdir()
  (folder / 'train.tsv').write_text('\n'.join(lines))
  data = PairDataConfig(
    source=f'parallel:{folder}',
    eval_split='train',
    tokenizer='bytes',
    buckets=(8, 16),
    batch_size=8,
    eval_batch_size=8,
    threads=0,
  )
  moe = model_config.MoEConfig(
    router='threshold', threshold=0.6, blocks=(1,), num_experts=4
  )
  model = model_config.EncoderDecoderConfig(
    width=8,
    depth=2,
    mlp_dim=16,
    num_heads=2,
    moe=moe,
    decoder_moe_blocks=(0,),
  )
  search = dataclasses.replace(translation.Config().search, beam=0)
  config = translation.Config(steps=2, model=model, data=data, search=search)
  return untrained.run(config, tmp_path / 'run')
