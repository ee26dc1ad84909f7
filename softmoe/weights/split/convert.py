"""From a run with a dense model to one whose MLPs are split into experts."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Float

from softmoe import experiment as experiment_lib
from softmoe.errors import UserError, naming
from softmoe.models.config import MoEConfig
from softmoe.moe import mlp
from softmoe.runs import load
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.weights.split import clusters, experts, inputs, router

# The router decides who runs, and no more: every expert on is the dense MLP.
_OPTIONS = (('all_experts', True), ('weighted', False))


def convert(
  workdir: str | os.PathLike,
  out: str | os.PathLike,
  num_experts: int,
  step: str | int = 'latest',
  num_tokens: int = 8192,
) -> experiment_lib.Experiment:
  """Writes a run whose model is another's, each MLP of it split into experts.

  Its one checkpoint has every expert on; a threshold, given when it is
  evaluated, makes it sparse.

  Args:
    workdir: of a run of a dense model.
    out: a new directory.
    num_experts: of each MLP, a divisor of its hidden units.
    step: 'latest', 'best' or a number.
    num_tokens: of the train split, to which clusters and routers are fitted.

  Returns:
    The experiment of the new run.

  Raises:
    UserError: there is no such run or checkpoint, it has no MLPs that could be
      split so, a field of its config has no meaning for experts, its data is
      gone, or `out` has files.
  """
  out = _new(out)
  with naming({'--workdir': 'WORKDIR'}):
    restored = load.restore(workdir, step)
  config: Any = restored.experiment.config
  _check(workdir, restored.experiment, num_experts)
  made = dataclasses.replace(
    config,
    name=f'{config.name}, split',
    init=f'{workdir}@{restored.step}',
    init_head='keep',
    model=_with_experts(config.model, num_experts),
  )
  experiment = experiment_lib.build(made, training=False)
  experiment_lib.with_fingerprint(config)
  params = _split(restored, num_experts, num_tokens)
  jax.set_mesh(experiment.mesh)
  with naming({'--workdir': 'OUT'}):
    _save(experiment, params, restored.step, out)
  _describe(experiment, workdir_lib.read_config(_path(workdir)).data, out)
  return experiment


def _path(name: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(name).expanduser()


def _new(out: str | os.PathLike) -> pathlib.Path:
  path = _path(out)
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise UserError('OUT', str(out), 'a directory that is new or empty')
  return path


def _check(
  workdir: str | os.PathLike,
  experiment: experiment_lib.Experiment,
  num_experts: int,
) -> None:
  """Raises a UserError unless each block of the model has an MLP to split."""
  model = nnx.merge(experiment.graphdef, experiment.abstract_params)
  blocks = getattr(model, 'blocks', ())
  if not blocks or not all(isinstance(block.mlp, mlp.Mlp) for block in blocks):
    expected = 'a run whose model is one stack of blocks, each with an MLP'
    raise UserError('WORKDIR', str(workdir), expected)
  config: Any = experiment.config
  if config.model.mlp_dim % num_experts:
    expected = f'a divisor of {config.model.mlp_dim}, the units of an MLP'
    raise UserError('--experts', num_experts, expected)


def _with_experts(model: Any, num_experts: int) -> Any:
  moe = MoEConfig(
    router='threshold',
    router_options=_OPTIONS,
    blocks=tuple(range(model.depth)),
    num_experts=num_experts,
    expert_dim=model.mlp_dim // num_experts,
    shared_dim=1,
    balance=0.0,
  )
  return dataclasses.replace(model, moe=moe)


def _split(
  restored: load.Restored, num_experts: int, num_tokens: int
) -> dict[str, Any]:
  """Returns the parameters with MoE layers, as runs exchange them."""
  config: Any = restored.experiment.config
  plain = dataclasses.replace(config.model, scan=False, remat=False)
  config = dataclasses.replace(config, model=plain)
  experiment = experiment_lib.build(config, training=False)
  params = restored.experiment.task.exchange(restored.params)
  tokens = inputs.of_mlps(experiment, params, num_tokens)
  model: Any = nnx.merge(experiment.graphdef, params)
  blocks = jax.tree.map(
    lambda w: np.asarray(jax.device_get(w), np.float32), params['blocks']
  )
  for i, x in enumerate(tokens):
    hidden = np.asarray(model.blocks[i].mlp.hidden(jnp.asarray(x)), np.float32)
    layer = _as_experts(blocks[i]['mlp'], x, hidden, num_experts, config.seed)
    blocks[i] = blocks[i] | {'mlp': layer}
  return params | {'blocks': blocks}


def _as_experts(
  params: dict[str, Any],
  x: Float[np.ndarray, 'n d'],
  hidden: Float[np.ndarray, 'n f'],
  num_experts: int,
  seed: int,
) -> dict[str, Any]:
  """Returns the parameters of the MoE layer that takes an MLP's place."""
  units = clusters.balanced(np.abs(hidden), num_experts, seed)
  mean, share = experts.outputs(hidden, params['down']['kernel'], units)
  return experts.layer(params, units, mean, router.fit(x, share))


def _save(
  experiment: experiment_lib.Experiment,
  params: dict[str, Any],
  step: int,
  out: pathlib.Path,
) -> None:
  """Writes the run with one checkpoint, of a fresh optimizer."""
  place = lambda w, like: jax.device_put(w.astype(like.dtype), like.sharding)
  params = jax.tree.map(
    place, experiment.task.take(params), experiment.abstract_params
  )
  state = jax.jit(
    lambda params: (
      state_lib.create(experiment, params) | {'step': jnp.int32(step)}
    )
  )(params)
  workdir_lib.claim(out, experiment.config)
  with workdir_lib.open_checkpoints(out, experiment.config) as checkpoints:
    checkpoints.save(step, state, force=True)


def _describe(
  experiment: experiment_lib.Experiment, data: Any, out: pathlib.Path
) -> None:
  """Writes the rest, which names the data as the dense run does.

  The experiment has a tokenizer from WORKDIR, which now is in `out` as well.
  """
  config: Any = dataclasses.replace(experiment.config, data=data)
  workdir_lib.describe(dataclasses.replace(experiment, config=config), out)
