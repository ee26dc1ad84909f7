"""The device mesh and where arrays live on it.

The mesh has three axes, and the batch is split over all of them. `data` splits
nothing else; `fsdp` splits every weight too, to be gathered where it is used;
`expert` splits the experts too. Axes are explicit: an array's type says how it
is split, and the compiler adds no movement of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import mesh_utils

from softmoe.errors import UserError

P = jax.P

AXES = ('data', 'fsdp', 'expert')


def make_mesh(
  spec: str, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh that a string such as 'data:2,fsdp:4' describes.

  Args:
    spec: sizes by axis name; one may be -1, which takes the devices that the
      others leave; an axis that is not named has size 1.
    devices: the devices to cover; None: all.

  Raises:
    UserError: a name or size is wrong, or the sizes do not cover the devices,
      or not `data` alone would cross from one TPU slice to another.
  """
  devices = jax.devices() if devices is None else devices
  grid = _grid(spec, axis_sizes(spec, len(devices)), devices)
  explicit = (jax.sharding.AxisType.Explicit,) * len(AXES)
  return jax.sharding.Mesh(grid, AXES, axis_types=explicit)


def one_device_mesh(
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """Returns the mesh of the first device, for what only looks at its kind."""
  return make_mesh('data:1', (devices or jax.devices())[:1])


def num_slices(devices: Sequence[jax.Device]) -> int:
  """Returns how many TPU slices the devices are of; 1 where there is none."""
  # GPUs have slices too: hosts, which experts may well be spread over.
  tpus = [d for d in devices if d.platform == 'tpu']
  return len({getattr(d, 'slice_index', 0) for d in tpus}) or 1


def _grid(
  spec: str, sizes: dict[str, int], devices: Sequence[jax.Device]
) -> np.ndarray:
  """Returns the devices in that shape; `data` alone crosses TPU slices."""
  n = num_slices(devices)
  if sizes['data'] % n:
    expected = f'data a multiple of {n}, the number of TPU slices'
    raise UserError('config.mesh', spec, expected)
  inner = sizes['data'] // n, sizes['fsdp'], sizes['expert']
  # Else a torus of '4x4' chips would have no axis of 8.
  split = {'allow_split_physical_axes': True}
  if n == 1:
    return mesh_utils.create_device_mesh(inner, devices, **split)
  outer = n, 1, 1
  return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **split)


def axis_sizes(spec: str, count: int) -> dict[str, int]:
  """Returns the size of each axis of a mesh of `count` devices.

  Raises:
    UserError: a name or size is wrong, or the sizes do not cover the devices.
  """
  sizes = _parse(spec)
  known = math.prod(s for s in sizes.values() if s > 0)
  if -1 in sizes.values() and count % known == 0:
    sizes = {a: count // known if s < 0 else s for a, s in sizes.items()}
  if math.prod(sizes.values()) != count:
    raise UserError(
      'config.mesh', spec, f'sizes whose product is {count}, the device count'
    )
  return sizes


def _parse(spec: str) -> dict[str, int]:
  sizes = dict.fromkeys(AXES, 1)
  items = spec.split(',')
  for item in items:
    axis, _, size = item.partition(':')
    valid = axis in AXES and (size == '-1' or (size.isdecimal() and int(size)))
    if not valid:
      raise UserError(
        'config.mesh',
        spec,
        f'NAME:SIZE,..., NAME one of {AXES}, SIZE at least 1, or -1 to fill',
      )
    sizes[axis] = int(size)
  if len({item.partition(':')[0] for item in items}) < len(items):
    raise UserError('config.mesh', spec, 'each axis once')
  if list(sizes.values()).count(-1) > 1:
    raise UserError('config.mesh', spec, 'at most one size of -1')
  return sizes


def abstract(
  make: Callable[..., Any], mesh: jax.sharding.Mesh, *arguments: Any
) -> Any:
  """Returns the shapes, types and places on `mesh` of what `make` returns.

  Nothing is computed. What `make` takes no notice of the mesh for, such as a
  constant scalar, is whole on every device.

  Args:
    make: what to call.
    mesh: the devices.
    *arguments: of `make`; shapes, types and places are enough.
  """

  def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    spec = x.sharding.spec if x.sharding else P()
    return x.update(sharding=jax.NamedSharding(mesh, spec))

  return jax.tree.map(place, jax.eval_shape(make, *arguments))


def explicit_axes() -> tuple[str, ...]:
  """Returns the axes of the mesh in force that have an explicit type."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
  return tuple(a for a, t in axes if t is jax.sharding.AxisType.Explicit)


def is_explicit(axis: str) -> bool:
  """Tells whether the mesh in force has `axis` with an explicit type."""
  return axis in explicit_axes()


def by_expert(x: jax.Array) -> jax.Array:
  """Moves axis 0, the experts, onto the mesh axis `expert`.

  Every other axis gives up `expert` and keeps the rest of its split, so that
  for an array split by batch this is one all-to-all. Where there is no such
  axis, the experts are whole; without any that is explicit the array is
  returned as it is.
  """
  if not explicit_axes():
    return x
  first = 'expert' if is_explicit('expert') else None
  rest = (_without(axes, 'expert') for axes in jax.typeof(x).sharding.spec[1:])
  return jax.reshard(x, P(first, *rest))


def platform() -> str:
  """Returns the platform to compile for: 'cpu', 'tpu', or that of a GPU.

  It is the mesh's, which need not be this host's.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def axis_size(axis: str) -> int:
  """Returns the size of an axis of the mesh in force; 1 if it has none."""
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def flatten(x: jax.Array, rank: int) -> jax.Array:
  """Merges all axes but the last `rank`, of which the first may be split."""
  shape = (-1, *x.shape[x.ndim - rank :])
  if not explicit_axes() or x.ndim == rank + 1:
    return jnp.reshape(x, shape)
  spec = jax.typeof(x).sharding.spec if x.ndim > rank else (None,)
  return jnp.reshape(x, shape, out_sharding=P(spec[0]))


def unflatten(y: jax.Array, x: jax.Array) -> jax.Array:
  """Returns `y` with the leading axes, and where they are, of `x`."""
  shape = (*x.shape[:-2], *y.shape[1:])
  if not explicit_axes():
    return jnp.reshape(y, shape)
  spec = jax.typeof(x).sharding.spec[: x.ndim - 2]
  y = jax.reshard(y, P(spec[0] if spec else None))
  return y if x.ndim == 3 else jnp.reshape(y, shape, out_sharding=P(*spec))


def has_rows(x: jax.Array) -> bool:
  """Tells whether no axis of an array but the first is split: `on_rows`."""
  return not any(jax.typeof(x).sharding.spec[1:])


def on_rows(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Returns `f` of `x` with all axes but the last as one, which stay split."""
  first = (jax.typeof(x).sharding.spec or (None,))[0]
  # Where the first axis is split, reshapes have to be told that it stays so.
  place: Any = {'out_sharding': P(first)} if first else {}
  y = f(jnp.reshape(x, (-1, x.shape[-1]), **place))
  return jnp.reshape(y, (*x.shape[:-1], -1), **place)


def repeat(x: jax.Array, times: int) -> jax.Array:
  """Returns each example `times` times, side by side, split as x is."""
  shape = (x.shape[0], times, *x.shape[1:])
  x = jnp.broadcast_to(jnp.expand_dims(x, 1), shape)
  flat = (shape[0] * times, *shape[2:])
  if not explicit_axes():
    return jnp.reshape(x, flat)
  return jnp.reshape(x, flat, out_sharding=P(jax.typeof(x).sharding.spec[0]))


def by_example(f: Callable[..., Any], *arguments: Any) -> Any:
  """Returns `f(*arguments)`, which each device computes for its own examples.

  Args:
    f: what no example has anything to do with another in.
    *arguments: of `f`, as its results trees of arrays whose first axis is that
      of examples, split alike; or of scalars.
  """
  if not explicit_axes():
    return f(*arguments)
  first = next(v for v in jax.tree.leaves(arguments) if v.ndim)
  own = P(jax.typeof(first).sharding.spec[0])
  specs = jax.tree.map(lambda v: own if v.ndim else P(), arguments)
  return jax.shard_map(f, in_specs=specs, out_specs=own)(*arguments)


def by_compiler(f: Callable[..., Any], like: Any, *arguments: Any) -> Any:
  """Returns `f(*arguments)`, for what moves rows as the compiler sees fit.

  Args:
    f: any function; inside, no axis of the mesh is explicit.
    like: a tree of arrays as `f` returns it, which says where results are.
    *arguments: of `f`.
  """
  if not explicit_axes():
    return f(*arguments)
  places = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
  auto: Any = jax.sharding.auto_axes(f, out_sharding=places)
  return auto(*arguments)


def place_like(x: jax.Array, other: jax.Array) -> jax.Array:
  """Returns x where `other` is."""
  if not explicit_axes():
    return x
  return jax.reshard(x, jax.typeof(other).sharding.spec)


def gather(module: Any, dtype: jax.typing.DTypeLike | None = None) -> Any:
  """Returns a module whose weights are whole along `fsdp`, ready to compute.

  The inverse of `fsdp`, applied to one block at a time. The gradient of a
  matrix, which must meet a batch that is split over the whole mesh in nothing
  but a matmul, is scattered while it is summed.

  Args:
    module: any pytree of arrays.
    dtype: that the split weights are used in; only then may they be cast to it
      before they travel. None: they travel as they are.
  """
  if not is_explicit('fsdp'):
    return module
  return jax.tree.map(lambda w: _gather(w, dtype), module)


def _gather(w: jax.Array, dtype: jax.typing.DTypeLike | None) -> jax.Array:
  spec = jax.typeof(w).sharding.spec
  if 'fsdp' not in spec:
    return w
  w = w if dtype is None else w.astype(dtype)
  if w.ndim != 2:
    return jax.reshard(w, _whole(spec))
  # 'Reduced' weights get gradients that are still partial sums, on every
  # device of its own rows: otherwise they would be summed before the split.
  axes = set(jax.sharding.get_abstract_mesh().axis_names)
  part, whole = P(*spec, reduced=axes - {'fsdp'}), P(None, None, reduced=axes)
  collect = lambda w: jax.lax.all_gather(
    w, 'fsdp', axis=spec.index('fsdp'), tiled=True, to='reduced'
  )
  gather = jax.shard_map(collect, in_specs=part, out_specs=whole)
  return gather(jax.reshard(w, part))


def local_weights(
  module: Any,
  specs: Any,
  dtype: jax.typing.DTypeLike | None,
  axes: tuple[str, ...],
) -> Any:
  """Does what `gather` does, inside a `jax.shard_map` with these `in_specs`.

  The weights come out as varying over its `axes`, so that their gradients are
  summed once, by the devices that share them.
  """

  def collect(w: jax.Array, spec: jax.P) -> jax.Array:
    shared = tuple(a for a in axes if not any(a in _names(s) for s in spec))
    w = jax.lax.pcast(w, shared, to='varying')
    if 'fsdp' not in spec:
      return w
    w = w if dtype is None else w.astype(dtype)
    return jax.lax.all_gather(w, 'fsdp', axis=spec.index('fsdp'), tiled=True)

  return jax.tree.map(collect, module, specs)


def keep_parts(primitive: Any, *_, **params: Any) -> bool:
  """A `jax.checkpoint` policy: keeps everything but gathered weights.

  Without it the backward pass would find the weights of all blocks whole.
  """
  return 'fsdp' not in params.get('axis_name', ())


def fsdp(params: Any, skip: int = 0) -> Any:
  """Returns the places that split every weight over the mesh axis `fsdp`.

  It is split along its longest axis that divides. Axes that are split already
  (those of experts) stay as they are, and so do the first `skip` axes: those
  of a `scan`. Vectors stay whole.

  Args:
    params: pytree of shapes, types and places; see `abstract`.
    skip: number of axes.
  """

  def split(w: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    place: Any = w.sharding
    size = place.mesh.shape['fsdp']
    spec = list(place.spec) + [None] * (w.ndim - len(place.spec))
    free = [i for i, axes in enumerate(spec) if axes is None and i >= skip]
    fits = [i for i in free if w.shape[i] % size == 0 and w.shape[i] >= size]
    if size > 1 and fits and w.ndim > skip + 1:
      spec[max(fits, key=lambda i: w.shape[i])] = 'fsdp'
    return w.update(sharding=place.update(spec=P(*spec)))

  return jax.tree.map(split, params)


def _whole(spec: jax.P) -> jax.P:
  return P(*(_without(axes, 'fsdp') for axes in spec))


def _without(axes: Any, axis: str) -> Any:
  """Returns one entry of a PartitionSpec without the mesh axis `axis`."""
  return tuple(a for a in _names(axes) if a != axis) or None


def _names(axes: Any) -> tuple[str, ...]:
  """Returns the mesh axes in one entry of a PartitionSpec."""
  return axes if isinstance(axes, tuple) else (axes,) if axes else ()


def reshape(x: jax.Array, *shape: int) -> jax.Array:
  """Reshapes every axis but the first, which stays and keeps its split."""
  if not is_explicit('data'):
    return jnp.reshape(x, (x.shape[0], *shape))
  spec = P(jax.typeof(x).sharding.spec[0])
  return jnp.reshape(x, (x.shape[0], *shape), out_sharding=spec)


def batch_spec() -> jax.P:
  """Returns the spec of a batch: axis 0 over every axis of the mesh."""
  return P(jax.sharding.get_abstract_mesh().axis_names)


def split_examples(x: jax.Array) -> jax.Array:
  """Returns x split as a batch is, or whole where it does not fill the mesh."""
  if not is_explicit('data'):
    return x
  fills = len(x) % jax.sharding.get_abstract_mesh().size == 0
  return jax.reshard(x, batch_spec() if fills else P())


def split_batch(x: jax.Array, parts: int) -> jax.Array:
  """Reshapes (b, ...) to (parts, b / parts, ...) without moving a row.

  Part i holds the rows i, i + parts, ..., so every device keeps its rows.
  """
  spec = P(jax.typeof(x).sharding.spec[0], None)
  shape = (x.shape[0] // parts, parts, *x.shape[1:])
  return jnp.moveaxis(jnp.reshape(x, shape, out_sharding=spec), 1, 0)
