"""How much a model computes for one unit of its task, such as a token.

FLOP here counts a multiply and an add as two, as the papers' tables do.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.costs import priced
from softmoe.tasks import registry
from softmoe.tasks import task as task_lib


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one forward pass costs, for one unit.

  Attributes:
    fewest: FLOPs where no dropless expert runs.
    most: FLOPs where all of them run for every token; that is `fewest` where
      there are none.
    share: of the dropless experts that run for a token on average; where the
      tokens decide and no router says how many, all.
    num_experts: of an MoE layer.
    is_fixed: whether all units cost the same whatever they hold.
    active: the share of each MoE layer's experts that run for a token.
  """

  fewest: float
  most: float
  share: float
  num_experts: int
  is_fixed: bool
  active: tuple[float, ...]

  def flops(self, experts_per_token: float | None = None) -> float:
    """Returns the FLOPs.

    Args:
      experts_per_token: how many dropless experts run on average, as was
        measured; None: see `share`.
    """
    share = self.share
    if experts_per_token is not None:
      share = experts_per_token / self.num_experts
    return self.fewest + share * (self.most - self.fewest)


def forward(config: config_lib.Config, *, training: bool = False) -> Cost:
  """Returns the cost of an evaluation, as the compiler counts.

  The count is of the traced program, before the compiler rewrites it. A `scan`
  would count its body once, so the blocks are unrolled for it. All types are
  float32 for it, since the casts of the weights, which are done once a batch,
  would count as well. A loop over the tokens of a dropless expert would count
  once as well: see `priced`.

  Args:
    config: of the experiment.
    training: whether experts have the capacity of training instead.
  """
  config = _plain(config)
  task = registry.find(config.task)(config)
  with _nowhere():
    most, seen = _count(task, 1.0, training)
    dropless = [layer for layer in seen if layer.is_dropless]
    fewest = most
    if any(layer.num_tokens > 1 for layer in dropless):
      half, _ = _count(task, 0.5, training)
      fewest = _extrapolate(half, most, dropless)
  shares = [layer.share for layer in dropless] or [0.0]
  return Cost(
    fewest=fewest,
    most=most,
    share=math.fsum(shares) / len(shares),
    num_experts=max((layer.num_experts for layer in seen), default=1),
    is_fixed=not any(layer.is_adaptive for layer in dropless),
    active=tuple(layer.share for layer in seen),
  )


def active_params(
  experiment: experiment_lib.Experiment,
  cost: Cost,
  experts_per_token: float | None = None,
) -> int:
  """Returns the number of parameters that work for a token, on average.

  Those of experts count by how many experts run for a token.

  Args:
    experiment: whose parameters they are.
    cost: of its config.
    experts_per_token: as in `Cost.flops`; None: as the router says.
  """
  model = nnx.merge(experiment.graphdef, experiment.abstract_params)
  layers = experiment_lib.moe_layers(model)
  active = cost.active
  if experts_per_token is not None:
    active = (experts_per_token / cost.num_experts,) * len(active)
  shares, idle = iter(active), []
  for layer in layers:
    parts = list(itertools.islice(shares, _num_blocks(layer)))
    size = sum(w.size for w in jax.tree.leaves(layer.experts)) / len(parts)
    idle += [(1 - share) * size for share in parts]
  return round(experiment.num_params() - math.fsum(idle))


def _num_blocks(layer: Any) -> int:
  """Returns how many blocks a layer is in; those of a scan are stacked."""
  weights = jax.tree.leaves(
    nnx.state(layer.experts), is_leaf=lambda v: isinstance(v, nnx.Variable)
  )
  first = weights[0]
  return first.shape[0] if first.get_metadata().get('stacked', False) else 1


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
  """Traces programs for no platform, so without what is special to any.

  They are lowered for the CPU, as nothing is counted on others before a
  compilation (https://github.com/jax-ml/jax/issues/22713).
  """
  cpu = jax.local_devices(backend='cpu')[:1]
  mesh = sharding.make_mesh('data:1', cpu)
  device = jax.sharding.AbstractDevice('none', num_cores=None, platform='none')
  traced = mesh.abstract_mesh.update(abstract_device=device)
  with jax.set_mesh(mesh), jax.sharding.use_abstract_mesh(traced):
    yield


def _extrapolate(half: float, most: float, layers: list[priced.Seen]) -> float:
  """Returns the FLOPs where no expert runs; they are linear in its rows."""
  parts = [round(layer.num_tokens / 2) / layer.num_tokens for layer in layers]
  part = math.fsum(parts) / len(parts)
  return most - (most - half) / (1 - part)


def _count(
  task: task_lib.Task, share: float, training: bool
) -> tuple[float, list[priced.Seen]]:
  """Returns the FLOPs of a unit in the smallest batch the model can take.

  Args:
    task: in float32 and unrolled.
    share: of the tokens that each dropless expert works for.
    training: see `forward`.
  """
  model = jax.eval_shape(lambda: task.make_model(nnx.Rngs(0)))
  layers = experiment_lib.moe_layers(model)
  seen = [priced.put_into(layer, share, training) for layer in layers]
  examples = math.lcm(*(layer.group_size for layer in layers))
  batch: Any = task.abstract_batch(examples)
  lowered = jax.jit(task.infer).lower(model, batch)
  cost: Any = lowered.cost_analysis()
  units = examples * task.units_per_example
  return cost['flops'] / units, [one[0] for one in seen]


def _plain(config: Any) -> Any:
  """Returns the config of the same model, unrolled and in float32."""
  plain = dict(
    scan=False,
    remat=False,
    attention='plain',  # what a kernel computes is not in the program
    dtype='float32',
    param_dtype='float32',
  )
  changes = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      changes[field.name] = _plain(value)
    elif field.name in plain:
      changes[field.name] = plain[field.name]
  return dataclasses.replace(config, **changes)
