"""One row of a format's table: where a parameter of ours lies in a file."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

Arrays = Mapping[str, Shaped[np.ndarray, '...']]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """A parameter as a view of an array of the file: only `first` is a copy.

  Attributes:
    path: of the parameter, as 'blocks/0/mlp/up/kernel', without `scan`.
    name: of the array.
    axes: the array's, in the order of the parameter's; empty: the same.
    part: (which, of how many) equal parts of the last axis then, as of a fused
      `qkv`.
    heads: (axis, how many): this axis and the next are one of the parameter's;
      how many 0: they are one already.
    scale: name of a vector that the parameter's last axis is multiplied by.
    first: places along the axis before the last that the parameter has in front
      of the array's: zeros.
  """

  path: str
  name: str
  axes: tuple[int, ...] = ()
  part: tuple[int, int] = (0, 1)
  heads: tuple[int, int] = (0, 0)
  scale: str = ''
  first: int = 0

  def names(self) -> set[str]:
    """Returns the names of all arrays that the parameter is made of."""
    return {self.name, self.scale} - {''}

  def view(
    self, array: Shaped[np.ndarray, '...']
  ) -> Shaped[np.ndarray, '...'] | None:
    """Returns the parameter before `scale`; None: the array has no such shape.

    Args:
      array: the one of this name.
    """
    (which, of), (axis, heads) = self.part, self.heads
    if self.axes and array.ndim != len(self.axes):
      return None
    view = np.transpose(array, self.axes) if self.axes else array
    if self.first:
      if view.ndim < 2:
        return None
      front = [(0, 0)] * (view.ndim - 2) + [(self.first, 0), (0, 0)]
      view = np.pad(view, front)
    shape = view.shape
    if heads:
      if shape[axis : axis + 1] != (heads,) or len(shape) < axis + 2:
        return None
      merged = heads * shape[axis + 1]
      view = view.reshape(*shape[:axis], merged, *shape[axis + 2 :])
    if of == 1:
      return view
    if not shape or shape[-1] % of:
      return None
    size = shape[-1] // of
    return view[..., which * size : (which + 1) * size]

  def read(self, arrays: Arrays, index: Index) -> Shaped[np.ndarray, '...']:
    """Returns a part of the parameter, which `view` can show.

    Args:
      arrays: of the file.
      index: a slice of each axis of the parameter.
    """
    view = self.view(arrays[self.name])
    assert view is not None
    found = np.asarray(view[index])  # of a scalar NumPy makes no array
    return found * arrays[self.scale][index[-1]] if self.scale else found


def write(
  rows: Sequence[Row], params: Mapping[str, Shaped[np.ndarray, '...']]
) -> Shaped[np.ndarray, '...']:
  """Returns the array of a file that shows these parameters.

  Args:
    rows: all of one name, none with a `scale` or `first`.
    params: by path.
  """
  rows = sorted(rows, key=lambda row: row.part)
  parts = [_split(row, params[row.path]) for row in rows]
  whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
  axes = rows[0].axes
  whole = np.transpose(whole, np.argsort(axes)) if axes else whole
  return np.ascontiguousarray(whole).reshape(whole.shape)  # a scalar stays one


def _split(
  row: Row, param: Shaped[np.ndarray, '...']
) -> Shaped[np.ndarray, '...']:
  axis, heads = row.heads
  if not heads:
    return param
  shape = param.shape
  return param.reshape(*shape[:axis], heads, -1, *shape[axis + 1 :])


# --- Parts that most tables have.


def linear(path: str, name: str, **options) -> list[Row]:
  """Returns the rows of a linear layer as torch has it, (outputs, inputs)."""
  return [
    Row(f'{path}/kernel', f'{name}.weight', axes=(1, 0), **options),
    Row(f'{path}/bias', f'{name}.bias', **options),
  ]


def norm(path: str, name: str) -> list[Row]:
  """Returns the rows of a LayerNorm as torch has it."""
  return [
    Row(f'{path}/scale', f'{name}.weight'),
    Row(f'{path}/bias', f'{name}.bias'),
  ]


def dense(path: str, name: str) -> list[Row]:
  """Returns the rows of a linear layer as Flax has it, (inputs, outputs)."""
  return [
    Row(f'{path}/{leaf}', f'{name}/{leaf}') for leaf in ('kernel', 'bias')
  ]


def layer_norm(path: str, name: str) -> list[Row]:
  """Returns the rows of a LayerNorm as Flax has it."""
  return [Row(f'{path}/{leaf}', f'{name}/{leaf}') for leaf in ('scale', 'bias')]


def attention(path: str, name: str, heads: int) -> list[Row]:
  """Returns the rows of an attention as Flax has it, heads on an axis."""
  read = [
    Row(f'{path}/{part}/{leaf}', f'{name}/{part}/{leaf}', heads=(axis, heads))
    for part in ('query', 'key', 'value')
    for leaf, axis in (('kernel', 1), ('bias', 0))
  ]
  norms = [
    Row(f'{path}/{part}_norm/scale', f'{name}/{part}_ln/scale')
    for part in ('query', 'key')
  ]
  return [
    *read,
    *norms,
    Row(f'{path}/out/kernel', f'{name}/out/kernel', heads=(0, heads)),
    Row(f'{path}/out/bias', f'{name}/out/bias'),
  ]
