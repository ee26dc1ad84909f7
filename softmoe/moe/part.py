"""What one device does for a layer, on any mesh or without one.

The tokens of a layer are split over some axes of the mesh, its batch axes.
Devices along the others hold the same tokens: each works for its own experts,
and whatever else they do alike counts once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp

from softmoe import sharding

P = jax.P


class Part(NamedTuple):
  """Where a device stands in the mesh.

  Attributes:
    axes: of the mesh, those that are explicit; empty: there are none.
    copies: those of `axes` along which devices hold the same tokens.
  """

  axes: tuple[str, ...] = ()
  copies: tuple[str, ...] = ()

  @property
  def experts(self) -> str | None:
    """The mesh axis that experts are split over; None: they are all here."""
    split = 'expert' in self.axes and sharding.axis_size('expert') > 1
    return 'expert' if split else None

  @property
  def split(self) -> tuple[str, ...]:
    """The mesh axes that the tokens are split over."""
    return tuple(axis for axis in self.axes if axis not in self.copies)

  @property
  def parts(self) -> int:
    """The number of parts that the tokens are split into."""
    return math.prod(map(sharding.axis_size, self.split))

  @property
  def whole(self) -> bool:
    """Whether every device that experts are split over has the same tokens."""
    return 'expert' in self.copies

  def total(self, x: jax.Array) -> jax.Array:
    """Returns the sum over all devices, those with copies counted once."""
    if not self.axes:
      return x
    return jax.lax.psum(self._once(self._varying(x), self.copies), self.axes)

  def to_next(self, x: jax.Array) -> jax.Array:
    """Returns what the device before this one has, in a ring of the parts."""
    if self.parts == 1:
      return x
    ring = [(i, (i + 1) % self.parts) for i in range(self.parts)]
    return jax.lax.ppermute(x, self.split, ring)

  def collect(self, x: jax.Array) -> jax.Array:
    """Returns the examples of all parts."""
    if self.parts == 1:
      return x
    return jax.lax.all_gather(x, self.split, tiled=True)

  def merge(self, x: jax.Array) -> jax.Array:
    """Returns what is the same on all copies as such."""
    if not self.copies:
      return x
    number = x.astype(jnp.int32) if x.dtype == bool else x
    once = self._once(number, self.copies)
    return jax.lax.psum(once, self.copies).astype(x.dtype)

  def merge_output(
    self, routed: jax.Array, shared: jax.Array | None
  ) -> jax.Array:
    """Returns the layer's output.

    Args:
      routed: what experts gave: where tokens are whole along the axis of the
        experts, a partial sum.
      shared: what is the same on all copies, or None.
    """
    others = tuple(a for a in self.copies if a != 'expert')
    y = self._once(routed, others)
    if shared is not None:
      y = y + self._once(shared, self.copies)
    return jax.lax.psum(y, self.copies) if self.copies else y

  def _once(self, x: jax.Array, copies: tuple[str, ...]) -> jax.Array:
    """Returns x on the first of the copies and 0 on the others.

    So no gradient counts twice either.
    """
    if not copies:
      return x
    first = [jax.lax.axis_index(a) == 0 for a in copies]
    return jnp.where(jnp.all(jnp.stack(first)), x, jnp.zeros_like(x))

  def _varying(self, x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    same = set(self.axes) - jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(sorted(same)), to='varying')


def batch_axes(x: jax.Array) -> tuple[str, ...]:
  """Returns the mesh axes that axis 0 of x is split over, and those of size 1.

  Without an explicit mesh there are none.
  """
  explicit = sharding.explicit_axes()
  if not explicit:
    return ()
  axes = jax.typeof(x).sharding.spec[0] or ()
  axes = axes if isinstance(axes, tuple) else (axes,)
  ones = (a for a in explicit if sharding.axis_size(a) == 1)
  return axes + tuple(a for a in ones if a not in axes)


def count(x: jax.Array) -> int:
  """Returns the number of parts that axis 0 of x is split into."""
  return math.prod(map(sharding.axis_size, batch_axes(x)))


def run(
  apply: Callable[..., Any],
  modules: tuple[Any, ...],
  dtypes: tuple[jax.typing.DTypeLike | None, ...],
  tokens: Any,
  check_vma: bool = True,
) -> Any:
  """Returns apply(part, *modules, tokens), run on every device.

  Args:
    apply: returns two trees: of arrays with an axis of examples, split as that
      of the tokens, and of sums over all devices.
    modules: pytrees of weights, handed over ready to compute with.
    dtypes: for each, see `sharding.gather`.
    tokens: arrays with a leading axis of examples; the first says how it is
      split.
    check_vma: see `jax.shard_map`.
  """
  axes = sharding.explicit_axes()
  if not axes:
    return apply(Part(), *modules, tokens)
  batch = batch_axes(jax.tree.leaves(tokens)[0])
  part = Part(axes, tuple(a for a in axes if a not in batch))
  specs = jax.tree.map(lambda w: jax.typeof(w).sharding.spec, modules)

  def local(modules, tokens):
    ready = functools.partial(sharding.local_weights, axes=axes)
    modules = map(ready, modules, specs, dtypes)
    # All that a device computes is its own: its gradients add up once.
    vary = lambda v: jax.lax.pcast(v, part.copies, to='varying')
    return apply(part, *modules, jax.tree.map(vary, tokens))

  return jax.shard_map(
    local,
    in_specs=(specs, P(batch)),
    out_specs=(P(batch), P()),
    axis_names=set(axes),
    check_vma=check_vma,
  )(modules, jax.tree.map(lambda v: jax.reshard(v, P(batch)), tokens))
