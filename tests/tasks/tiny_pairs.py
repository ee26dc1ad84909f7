"""A contrastive experiment that trains in seconds: noise, and words for it."""

import dataclasses
from typing import Any

from softmoe.data.captioned.config import CaptionedDataConfig
from softmoe.models.config import MoEConfig, TextConfig, ViTConfig
from softmoe.tasks import contrastive

CLASSES = 5
SIZES = dict(width=8, depth=2, mlp_dim=16, num_heads=2)
SPARSE = dict(
  router='tokens_choice',
  blocks=(1,),
  num_experts=8,
  k=2,
  losses=(('switch', 0.1), ('z', 0.01)),
)


def config(**changes: Any) -> contrastive.Config:
  """Returns the config, with changes to fields and to its parts.

  Args:
    **changes: fields; of `data`, `model`, `text`, `optimizer` and `zeroshot`
      the fields of theirs that change.
  """
  made = contrastive.Config(
    steps=3,
    log_every=1,
    model=ViTConfig(**SIZES, patch_size=(4, 4)),
    text=TextConfig(**SIZES, vocab_size=257),
    data=CaptionedDataConfig(
      source=f'fake:8x8x1,classes={CLASSES}',
      captions='tests/data/captioned/captions.jsonl',
      eval_split='test[:21]',
      image_size=(8, 8),
      length=10,
      batch_size=16,
      eval_batch_size=16,
      threads=0,
    ),
  )
  changes = {
    name: dataclasses.replace(getattr(made, name), **value)
    if isinstance(value, dict)
    else value
    for name, value in changes.items()
  }
  return dataclasses.replace(made, **changes)


def sparse() -> MoEConfig:
  """Returns what makes the last block of a tower a mixture with losses."""
  return MoEConfig(**SPARSE)
