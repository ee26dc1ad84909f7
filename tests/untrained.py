"""Runs that nobody trained: a workdir with a checkpoint of step 0."""

import dataclasses
import pathlib
from typing import Any

import jax

from softmoe import experiment as experiment_lib
from softmoe.models import config as model_config
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.tasks import language


def text(**model: Any) -> language.Config:
  """Returns the config of a small language model on the documents here."""
  fields = dict(width=8, depth=2, mlp_dim=16, num_heads=2) | model
  data = dataclasses.replace(
    language.Config().data,
    source='text:docs/report.md',
    train_split='train',
    eval_split='train',
    length=16,
    batch_size=8,
    eval_batch_size=64,
    threads=0,
  )
  model = model_config.DecoderConfig(**fields)
  return language.Config(name='text', steps=2, model=model, data=data)


def run(config: Any, workdir: pathlib.Path) -> pathlib.Path:
  """Makes the workdir; vectors of its model are no longer near 0, or 1."""
  config = experiment_lib.with_fingerprint(config)
  experiment = experiment_lib.build(config)
  state = state_lib.init(experiment)
  state['params'] = jax.tree.map_with_path(_moved, state['params'])
  workdir_lib.claim(workdir, config)
  workdir_lib.describe(experiment, workdir)
  with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
    checkpoints.save(0, state, force=True)
  return workdir


def _moved(path: Any, w: jax.Array) -> jax.Array:
  if jax.tree_util.keystr(path[-1:], simple=True) == 'kernel':
    return w
  noise = jax.random.normal(jax.random.key(w.size), w.shape, w.dtype)
  return w + 0.3 * jax.reshard(noise, jax.typeof(w).sharding)
