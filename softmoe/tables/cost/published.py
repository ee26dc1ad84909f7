"""The runs in tables 1, 8 and 9 of the Soft MoE paper, as printed there.

Puigcerver et al., https://arxiv.org/abs/2308.00951v2. `published.csv` holds
every figure of a row; a run that two tables show is there once.
"""

import csv
import dataclasses
import functools
import pathlib
from typing import Any

TABLES = (1, 8, 9)
BATCH_SIZE = 4096  # images a step, in all runs


@dataclasses.dataclass(frozen=True)
class Row:
  """One run; what its table does not print is None.

  Attributes:
    tables: that show it.
    ref: its number in table 9.
    model: size and patch, such as 'S/16'.
    routing: 'dense' (ViT), 'soft', 'experts' or 'tokens' (choice).
    experts: of each MoE layer, the last half of the blocks.
    group: tokens that are routed together.
    k: experts that a token takes.
    c: capacity factor.
    steps: of training, with BATCH_SIZE images each.
    cooldown: steps of them in which the learning rate falls to 0.
    params: number of parameters, with the digits that are printed.
    gflop: of a forward pass of one image, at 224 x 224 pixels.
    exaflop: of the whole training.
    days: of a TPUv3 chip.
    ms: of a chip for the evaluation of one image.
    jft: precision at 1 on JFT-4B, in %.
    shot10: accuracy of 10-shot ImageNet, in %.
    finetune: accuracy of ImageNet after fine-tuning at 384 x 384 pixels, in %.
  """

  tables: tuple[int, ...]
  ref: int | None
  model: str
  routing: str
  experts: int | None
  group: int | None
  k: int | None
  c: float | None
  steps: int
  cooldown: int
  params: str | None
  gflop: float | None
  exaflop: float
  days: float
  ms: float | None
  jft: float
  shot10: float
  finetune: float | None

  @property
  def images(self) -> int:
    """How many images the training sees."""
    return self.steps * BATCH_SIZE


@functools.cache
def rows() -> tuple[Row, ...]:
  """Returns all rows, in the order of the tables."""
  path = pathlib.Path(__file__).with_name('published.csv')
  with path.open(newline='') as file:
    return tuple(map(_row, csv.DictReader(file)))


def _row(cells: dict[str, str]) -> Row:
  values: Any = {name: _value(name, cell) for name, cell in cells.items()}
  tables = tuple(map(int, cells['tables'].split()))
  return Row(**values | {'tables': tables})


def _value(name: str, cell: str) -> str | int | float | None:
  if name in ('tables', 'model', 'routing', 'params'):
    return cell or None
  whole = name in ('ref', 'experts', 'group', 'k', 'steps', 'cooldown')
  return (int if whole else float)(cell) if cell else None
