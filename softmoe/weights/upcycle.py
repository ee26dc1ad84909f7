"""Sparse upcycling: MoE layers out of the MLPs of a dense model.

Komatsuzaki et al., 2023, https://arxiv.org/abs/2212.05055: every expert starts
as a copy of the MLP, routers are new. Experts that are narrower than the MLP
start as parts of it, and the experts of one copy get the same router weights
(the virtual groups of He et al., 2024, https://arxiv.org/abs/2410.07524).

Of E experts of f units out of an MLP of F, expert e is part e mod P of copy
e // P, where P = F / f. With the gates g of a token, the layer computes

    sum over e of g_e (scale P part_e(x) + scale bias),

which is the MLP where scale times the gates sums to 1 over the experts, and
to 1 / P over those of each part. docs/finetuning.md says for which routers it
does. A shared MLP takes the first hidden units; experts get the rest. Where it
takes all units nothing is left for them to say: they are copies whose last
matrix is 0, and the model is the dense one whatever the router does.

Axes: `d` width, `f` hidden units of an expert, `e` experts.
"""

import dataclasses
import functools
from typing import Any

import jax
from flax import traverse_util
from jax import numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from softmoe import sharding
from softmoe.config import UpcycleConfig
from softmoe.errors import UserError
from softmoe.models import config as models
from softmoe.tasks import task as task_lib

Params = dict  # nested, of arrays
_BY_EXPERT = ('kernel', 'phi')  # of routers: (d, e) and (d, e, slots)


def dense(task: task_lib.Task) -> task_lib.Task:
  """Returns the task of the same model without MoE blocks.

  Raises:
    UserError: the model's config does not tell which blocks are MoE.
  """
  model = getattr(task.config, 'model', None)
  if not isinstance(model, models.TransformerConfig):
    expected = 'False: it needs a model with the fields of `TransformerConfig`'
    raise UserError('config.upcycle.enabled', True, expected)
  fields: dict[str, Any] = {'moe': models.MoEConfig()}
  if isinstance(model, models.EncoderDecoderConfig):
    fields['decoder_moe_blocks'] = ()
  model = dataclasses.replace(model, **fields)
  return type(task)(dataclasses.replace(task.config, model=model))


def upcycle(
  params: Params,
  fresh: Params,
  options: UpcycleConfig | None,
  key: PRNGKeyArray,
) -> Params:
  """Returns a dense model's parameters with MoE layers in place of MLPs.

  Args:
    params: of the dense model, without `scan`.
    fresh: the MoE model's at creation; its shapes say what becomes experts.
    options: see there; None: copies and parts as they are, neither scaled nor
      with noise, which is for what an optimizer remembers of each parameter.
    key: for the noise.

  Raises:
    UserError: the sizes do not fit.
  """
  for i, path in enumerate(layers(params, fresh)):
    mlp, like = _at(params, path), _at(fresh, path)
    make = functools.partial(_layer, options=options)
    moe = sharding.by_compiler(
      make, like, mlp, like, jax.random.fold_in(key, i)
    )
    params = _put(params, path, moe)
  return params


def layers(params: Params, fresh: Params) -> list[tuple]:
  """Returns the paths at which one has an MLP and the other an MoE layer."""
  nodes = traverse_util.flatten_dict(fresh, is_leaf=lambda _, v: _is_moe(v))
  paths = [path for path, node in nodes.items() if _is_moe(node)]
  return [path for path in paths if 'up' in _at(params, path)]


def _is_moe(node: Any) -> bool:
  return isinstance(node, dict) and 'experts' in node


def _at(tree: Any, path: tuple) -> Any:
  return functools.reduce(lambda node, k: node.get(k, {}), path, tree)


def _put(tree: Params, path: tuple, value: Any) -> Params:
  key, *rest = path
  return tree | {key: _put(tree[key], tuple(rest), value) if rest else value}


# --- One layer.


def _layer(
  mlp: Params, like: Params, key: PRNGKeyArray, *, options: UpcycleConfig | None
) -> Params:
  """Returns the parameters of the MoE layer that takes an MLP's place."""
  stacked = like['experts']['stacked']
  num_experts, _, units = stacked['up']['kernel'].shape
  total, shared = _units(mlp), _units(like.get('shared'))
  _check(total, shared, units, num_experts)
  whole = shared == total  # which leaves nothing for experts to say
  first = 0 if whole else shared
  parts = (total - first) // units
  each = [_part(mlp, first + i * units, units) for i in range(parts)]
  if options:
    scale = 0.0 if whole else options.scale
    bias = scale * (not shared)  # in the shared MLP, if there is one
    each = [_scaled(part, scale * parts, bias) for part in each]
  copies = num_experts // parts
  experts = jax.tree.map(lambda *w: jnp.stack(w * copies), *each)
  experts = _noisy(experts, options.noise if options else 0.0, key)
  # Beside the kernels there may be low-rank parts, which stay fresh.
  experts = {name: stacked[name] | w for name, w in experts.items()}
  moe = like | {'experts': {'stacked': experts}}
  if 'router' in like:
    moe['router'] = _grouped(like['router'], num_experts, parts)
  if shared:
    moe['shared'] = _part(mlp, 0, shared)
  return jax.tree.map(lambda w, old: w.astype(old.dtype), moe, like)


def _units(mlp: Params | None) -> int:
  return mlp['up']['kernel'].shape[-1] if mlp else 0


def _check(total: int, shared: int, units: int, num_experts: int) -> None:
  """Raises unless so many experts of so many units make copies of an MLP."""
  field = 'config.model.moe.'
  if shared > total:
    expected = f'at most {total}, the hidden units of the dense MLP'
    raise UserError(field + 'shared_dim', shared, expected)
  rest = total - shared or total
  if rest % units:
    expected = f'a divisor of {rest}, the hidden units that experts share'
    raise UserError(field + 'expert_dim', units, expected)
  if num_experts % (rest // units):
    expected = f'a multiple of {rest // units}, the experts that make one MLP'
    raise UserError(field + 'num_experts', num_experts, expected)


def _part(mlp: Params, start: int, size: int) -> Params:
  """Returns some hidden units as an MLP of their own, with the whole bias."""
  units = slice(start, start + size)
  into = {name: mlp[name] for name in mlp if name != 'down'}
  down = mlp['down'] | {'kernel': mlp['down']['kernel'][units]}
  return jax.tree.map(lambda w: w[..., units], into) | {'down': down}


def _scaled(mlp: Params, kernel: float, bias: float) -> Params:
  down = mlp['down']
  down = down | {'kernel': kernel * down['kernel'], 'bias': bias * down['bias']}
  return mlp | {'down': down}


def _noisy(experts: Params, noise: float, key: PRNGKeyArray) -> Params:
  """Adds normal noise to kernels, relative to their standard deviation."""
  if not noise:
    return experts

  def add(path: tuple, w: Any) -> Array:
    if path[-1] != 'kernel':
      return w
    own = jax.random.fold_in(key, sorted(experts).index(path[0]))
    return w + noise * jnp.std(w) * jax.random.normal(own, w.shape, w.dtype)

  flat = traverse_util.flatten_dict(experts)
  return traverse_util.unflatten_dict({k: add(k, w) for k, w in flat.items()})


def _grouped(router: Params, num_experts: int, parts: int) -> Params:
  """Gives the experts of one copy the same weights in the router."""

  def repeat(w: Array) -> Array:
    own, null = w[:, :num_experts], w[:, num_experts:]
    same = jnp.repeat(own[:, ::parts], parts, axis=1)
    return jnp.concatenate([same, null], axis=1)

  return {
    name: repeat(w) if name in _BY_EXPERT else w for name, w in router.items()
  }
