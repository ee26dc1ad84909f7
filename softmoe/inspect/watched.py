"""MoE layers that tell where their tokens go, while the model runs.

Axes: `b` examples, `m` tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from softmoe.moe import layer, routing

# Takes the routing of a call, and which of its tokens are real, (b, m).
Note = Callable[[routing.Slots | routing.Assignment, Array], None]


class Watched(layer.MoE):
  """An MoE layer that notes its routing beside its output."""

  def __init__(self, inner: layer.MoE, note: Note):
    """Takes the layer that does the work, and who is told."""
    self.inner, self.note = inner, note

  def __call__(
    self,
    x: Float[Array, '*b m d'],
    mask: Bool[Array, '*b m'] | None = None,
    *,
    cache: Any = None,
    **options: Any,
  ) -> tuple[Float[Array, '*b m d_out'], dict[str, Any]]:
    """Returns what the layer does."""
    routed = self.inner.route(x, mask, **options)
    # Like the tokens: of the same place on a mesh.
    self.note(routed, jnp.ones_like(x[..., 0], bool) if mask is None else mask)
    return self.inner(x, mask, cache=cache, **options)


def watch(model: Any, notes: dict[str, Any]) -> None:
  """Lets every MoE layer of a model, at each call, add to `notes`.

  Args:
    model: any, without `scan` or `remat`, inside or outside of `jax.jit`.
    notes: gets (routing, real tokens) under the path of each layer.
  """
  for path, parent, name, moe in places(model):
    setattr(parent, name, Watched(moe, _noting(notes, path)))


def _noting(notes: dict[str, Any], path: str) -> Note:
  def note(routed, real):
    notes[path] = routed, real

  return note


def places(model: Any) -> list[tuple[str, Any, str, layer.MoE]]:
  """Returns path, parent, name in it and MoE layer, for each, in order."""
  found = []
  for path, module in list(nnx.iter_modules(model)):
    for name, child in list(vars(module).items()):
      if isinstance(child, layer.MoE):
        found.append((_words(path), module, name, child))
  return sorted(found, key=lambda place: _order(place[0]))


def drop_experts(model: Any, keep: list[Float[Array, ' _e']]) -> None:
  """Makes experts return 0: all their parameters become 0.

  Their tokens get nothing in their stead, and gates are not rescaled.

  Args:
    model: any.
    keep: of each layer, as `places` has them: 1 for an expert that stays.
  """
  for (*_, moe), kept in zip(places(model), keep, strict=True):
    state = nnx.state(moe.experts.stacked)
    apply = lambda w, kept=kept: w * _beside(kept, w)
    nnx.update(moe.experts.stacked, jax.tree.map(apply, state))


def _beside(kept: Array, w: Array) -> Array:
  shape = (len(kept), *[1] * (w.ndim - 1))
  return jnp.reshape(kept, shape).astype(w.dtype)


def _words(path: tuple[Any, ...]) -> str:
  return ' '.join(map(str, path))


def _order(path: str) -> list[tuple[bool, int, str]]:
  """Returns a key by which block 10 comes behind block 9."""
  return [
    (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
    for part in path.split()
  ]
