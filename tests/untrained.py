"""Runs that nobody trained: a workdir with a checkpoint of step 0."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

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
  """Makes the workdir of a model of random numbers, vectors among them.

  Nothing is compiled for it.
  """
  config = experiment_lib.with_fingerprint(config)
  experiment = experiment_lib.build(config)
  abstract = state_lib.abstract(experiment)
  state = jax.tree.map_with_path(_drawn, abstract)
  workdir_lib.claim(workdir, config)
  workdir_lib.describe(experiment, workdir)
  with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
    checkpoints.save(0, state, force=True)
  return workdir


def _drawn(path: Any, w: jax.ShapeDtypeStruct) -> jax.Array:
  value = 0.5 * np.random.default_rng(w.size).normal(size=w.shape)
  if jax.tree_util.keystr(path[-1:], simple=True) == 'scale':
    value = 1 + value / 2
  return jax.device_put(value.astype(w.dtype), w.sharding)
