"""What tasks share whose models see images: their range and resolution."""

import math
from collections.abc import Mapping
from typing import Any

from softmoe.errors import UserError
from softmoe.models import patches
from softmoe.tasks import task as task_lib


def check(config: Any) -> None:
  """Raises a UserError unless the range of pixel values is one."""
  low, high = config.data.value_range
  if low >= high:
    expected = 'two numbers, the first below the second'
    raise UserError.of_field(config, 'data.value_range', expected)


def size_of(
  config: Any, shapes: Mapping[str, tuple[int, ...]], path: str
) -> tuple[int, int]:
  """Returns the size of the images that a model with these shapes sees.

  It is this task's, if it has as many patches, or else that of a square.

  Args:
    config: of this task.
    shapes: of parameters, by path; see `Task.of_shapes`.
    path: of the positions of patches among them.

  Raises:
    UserError: there is no such square.
  """
  size, patch = config.data.image_size, config.model.patch_size
  rows, columns = patches.grid(size, patch)
  if path not in shapes:
    return size
  count = shapes[path][-2] - (config.model.pool == 'token')
  if count == rows * columns:
    return size
  side = math.isqrt(max(count, 0))
  if not side or side * side != count:
    expected = 'as many positions as a square of patches has'
    raise UserError('config.init', f'{count} positions', expected)
  return side * patch[0], side * patch[1]


def resized(params: task_lib.Params, there: Any, here: Any) -> task_lib.Params:
  """Returns a ViT's parameters with the positions of another resolution.

  Args:
    params: of the ViT.
    there: config of the task that they are from.
    here: config of the task that they are for.
  """
  grids = (
    patches.grid(c.data.image_size, c.model.patch_size) for c in (there, here)
  )
  embedding = params['patches']
  position = patches.resize_positions(embedding['position'], *grids)
  return params | {'patches': embedding | {'position': position}}
