"""The device mesh and where arrays live on it.

The mesh has two axes. `data` splits the batch alone; `expert` splits the batch
and the experts. Axes are explicit: an array's type says how it is split, and
the compiler adds no movement of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp

from softmoe.errors import UserError

P = jax.P

AXES = ('data', 'expert')


def make_mesh(
  spec: str, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh that a string such as 'data:2,expert:4' describes.

  Args:
    spec: sizes by axis name; one may be -1, which takes the devices that the
      others leave; an axis that is not named has size 1.
    devices: the devices to cover; None: all.

  Raises:
    UserError: a name or size is wrong, or the sizes do not cover the devices.
  """
  sizes = _parse(spec)
  count = jax.device_count() if devices is None else len(devices)
  known = math.prod(s for s in sizes.values() if s > 0)
  if -1 in sizes.values() and count % known == 0:
    sizes = {a: count // known if s < 0 else s for a, s in sizes.items()}
  if math.prod(sizes.values()) != count:
    raise UserError(
      'config.mesh', spec, f'sizes whose product is {count}, the device count'
    )
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices)


def _parse(spec: str) -> dict[str, int]:
  sizes = dict.fromkeys(AXES, 1)
  items = spec.split(',')
  for item in items:
    axis, _, size = item.partition(':')
    valid = axis in AXES and (size == '-1' or (size.isdigit() and int(size)))
    if not valid:
      raise UserError(
        'config.mesh', spec, "'data:N,expert:M' with N, M >= 1, or -1 to fill"
      )
    sizes[axis] = int(size)
  if len({item.partition(':')[0] for item in items}) < len(items):
    raise UserError('config.mesh', spec, 'each axis once')
  if list(sizes.values()).count(-1) > 1:
    raise UserError('config.mesh', spec, 'at most one size of -1')
  return sizes


def abstract(make: Callable[[], Any], mesh: jax.sharding.Mesh) -> Any:
  """Returns the shapes, types and places on `mesh` of what `make` returns.

  Nothing is computed. What `make` takes no notice of the mesh for, such as a
  constant scalar, is whole on every device.
  """

  def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    spec = x.sharding.spec if x.sharding else P()
    return x.update(sharding=jax.NamedSharding(mesh, spec))

  return jax.tree.map(place, jax.eval_shape(make))


def is_explicit(axis: str) -> bool:
  """Tells whether the mesh in force has `axis` with an explicit type."""
  mesh = jax.sharding.get_abstract_mesh()
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  return types.get(axis) is jax.sharding.AxisType.Explicit


def by_expert(x: jax.Array) -> jax.Array:
  """Moves axis 0, the experts, onto the mesh axis `expert`.

  Every other axis gives up `expert` and keeps the rest of its split, so that
  for an array split by batch this is one all-to-all. Without an explicit
  `expert` axis the array is returned as it is.
  """
  if not is_explicit('expert'):
    return x
  rest = (_without(axes, 'expert') for axes in jax.typeof(x).sharding.spec[1:])
  return jax.reshard(x, P('expert', *rest))


def platform() -> str:
  """Returns the platform to compile for: 'cpu', 'tpu', or that of a GPU.

  It is the mesh's, which need not be this host's.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def num_devices() -> int:
  """Returns the number of devices of the explicit mesh; 1 without one."""
  if not is_explicit('expert'):
    return 1
  return jax.sharding.get_abstract_mesh().size


def flatten(x: jax.Array, rank: int) -> jax.Array:
  """Merges all axes but the last `rank`, of which the first may be split."""
  shape = (-1, *x.shape[x.ndim - rank :])
  if not is_explicit('expert') or x.ndim == rank + 1:
    return jnp.reshape(x, shape)
  spec = jax.typeof(x).sharding.spec if x.ndim > rank else (None,)
  return jnp.reshape(x, shape, out_sharding=P(spec[0]))


def unflatten(y: jax.Array, x: jax.Array) -> jax.Array:
  """Returns `y` with the leading axes, and where they are, of `x`."""
  shape = (*x.shape[:-2], *y.shape[-2:])
  if not is_explicit('expert'):
    return jnp.reshape(y, shape)
  spec = jax.typeof(x).sharding.spec[: x.ndim - 2]
  y = jax.reshard(y, P(spec[0] if spec else None))
  return y if x.ndim == 3 else jnp.reshape(y, shape, out_sharding=P(*spec))


def gather(module: Any) -> Any:
  """Returns a module whose weights are whole along `data`, ready to compute.

  The inverse of `fsdp`, applied to one block at a time. Its gradient scatters.
  """
  if not is_explicit('data'):
    return module
  return jax.tree.map(
    lambda w: jax.reshard(
      w, P(*(_without(axes, 'data') for axes in jax.typeof(w).sharding.spec))
    ),
    module,
  )


def fsdp(params: Any, skip: int = 0) -> Any:
  """Splits every weight over `data`, along its longest axis that divides.

  Axes that are split already (those of experts) stay as they are, and so do
  the first `skip` axes: those of a `scan`. Vectors stay whole.
  """
  size = jax.sharding.get_abstract_mesh().shape['data']
  return jax.tree.map(
    lambda w: jax.reshard(w, _fsdp_spec(w, size, skip)), params
  )


def _fsdp_spec(w: jax.Array, size: int, skip: int) -> jax.P:
  spec = list(jax.typeof(w).sharding.spec)
  free = [i for i, axes in enumerate(spec) if axes is None and i >= skip]
  fits = [i for i in free if w.shape[i] % size == 0 and w.shape[i] >= size]
  if fits and w.ndim > skip + 1:
    spec[max(fits, key=lambda i: w.shape[i])] = 'data'
  return P(*spec)


def _without(axes: Any, axis: str) -> Any:
  """Returns one entry of a PartitionSpec without the mesh axis `axis`."""
  names = axes if isinstance(axes, tuple) else (axes,)
  kept = tuple(a for a in names if a not in (axis, None))
  return kept or None


def reshape(x: jax.Array, *shape: int) -> jax.Array:
  """Reshapes every axis but the first, which stays and keeps its split."""
  if not is_explicit('data'):
    return jnp.reshape(x, (x.shape[0], *shape))
  spec = P(jax.typeof(x).sharding.spec[0])
  return jnp.reshape(x, (x.shape[0], *shape), out_sharding=spec)


def batch_spec() -> jax.P:
  """Returns the spec of a batch: axis 0 over every axis of the mesh."""
  return P(jax.sharding.get_abstract_mesh().axis_names)


def split_batch(x: jax.Array, parts: int) -> jax.Array:
  """Reshapes (b, ...) to (parts, b / parts, ...) without moving a row.

  Part i holds the rows i, i + parts, ..., so every device keeps its rows.
  """
  spec = P(jax.typeof(x).sharding.spec[0], None)
  shape = (x.shape[0] // parts, parts, *x.shape[1:])
  return jnp.moveaxis(jnp.reshape(x, shape, out_sharding=spec), 1, 0)
