"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries.

They are the test part of UCI's "Optical Recognition of Handwritten Digits".
The split is ours: the images in `fixed_order`, the first 1,437 for training and
the last 360 for testing. It is random, not stratified, so a class makes
up 7 to 13 % of the test images, and a writer may be in both parts.
"""

import numpy as np

from softmoe.data import splits
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError

_RANGES = {'train': slice(0, 1437), 'test': slice(1437, None)}


def open_split(argument: str, split: str) -> source_lib.Source:
  """Returns a whole split.

  Raises:
    UserError: there is an argument, or the split is unknown.
  """
  if argument:
    given = f'digits:{argument}'
    raise UserError('config.data.source', given, "'digits', without argument")
  if split not in _RANGES:
    raise splits.unknown(split, _RANGES)
  from sklearn import datasets  # costs a second to import

  pixels, labels = datasets.load_digits(return_X_y=True)
  rows = splits.fixed_order(len(labels))[_RANGES[split]]
  images = np.round(pixels[rows] * (255 / 16)).astype(np.uint8)
  return source_lib.ArraySource(images.reshape(-1, 8, 8), labels[rows], 10)
