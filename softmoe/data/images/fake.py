"""Noise of any shape with random labels, for speed and for trying things out.

`fake:224x224x3` has 10 classes; `fake:32x32x1,classes=100` says how many. There
are 1,024 examples in `train` and 1,024 others in `test`.
"""

import dataclasses
import re

import numpy as np

from softmoe.data import splits
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError

_FORM = re.compile(r'([1-9]\d*)x([1-9]\d*)x([13])(?:,classes=([1-9]\d*))?')
_STREAMS = {'train': 0, 'test': 1}
_LENGTH = 1024


@dataclasses.dataclass(frozen=True)
class FakeSource:
  """Examples that depend on their stream and index alone."""

  shape: tuple[int, int, int]
  num_classes: int
  stream: int
  labels: None = None

  def __len__(self) -> int:
    return _LENGTH

  def __getitem__(self, index: int) -> source_lib.Example:
    rng = np.random.default_rng((self.stream, index))
    image = rng.integers(0, 256, self.shape, dtype=np.uint8)
    return {'image': image, 'label': int(rng.integers(self.num_classes))}


def open_split(argument: str, split: str) -> source_lib.Source:
  """Returns a whole split of noise.

  Raises:
    UserError: the argument is malformed or the split is unknown.
  """
  match = _FORM.fullmatch(argument)
  if match is None:
    expected = "a form such as 'fake:32x32x3,classes=10', of 1 or 3 channels"
    raise UserError('config.data.source', f'fake:{argument}', expected)
  if split not in _STREAMS:
    raise splits.unknown(split, _STREAMS)
  height, width, channels, classes = match.groups('10')
  shape = (int(height), int(width), int(channels))
  return FakeSource(shape, int(classes), _STREAMS[split])
