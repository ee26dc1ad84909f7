"""Small runs at random weights to inspect."""

from softmoe.models import config as model_config
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
