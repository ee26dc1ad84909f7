"""What a metric's name says: how to write it, and which way is better."""

import dataclasses
import re
from collections.abc import Collection

_LOWER_IS_BETTER = ('loss', 'perplexity', 'error', 'dropped', 'bits_per_byte')
_FRACTIONS = ('accuracy', 'shot')  # of quality, written in percent
# Other figures of quality, and the digits behind their point.
_QUALITY = {'bits_per_byte': 3, 'perplexity': 2, 'bleu': 2, 'chrf': 2}

# What routers tell, and what a reader calls it.
_ROUTING = {
  'dropped': 'dropped choices',
  'granted': 'experts used by a token',
  'used_experts': 'used experts',
  'dispatch_max': "largest weight of a slot's tokens",
  'combine_max': "largest weight of a token's slots",
}


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric as runs name it, such as 'test/accuracy' or 'fewshot/10shot'."""

  name: str

  @property
  def label(self) -> str:
    """Returns what a reader calls it: '10-shot accuracy'."""
    first, _, last = self.name.rpartition('/')
    if self.is_fewshot:
      return f'{last.removesuffix("shot")}-shot accuracy'
    if self.is_routing:
      return f'{_ROUTING[last]} ({first.removesuffix("/moe")})'
    return self.name.replace('/', ' ').replace('_', ' ')

  @property
  def split(self) -> str:
    """Returns what it was measured on, such as 'test'."""
    return self.name.partition('/')[0]

  @property
  def is_fewshot(self) -> bool:
    """Tells whether it is an accuracy after a few images of each class."""
    return re.fullmatch(r'\d+shot', self._last) is not None

  @property
  def is_at_threshold(self) -> bool:
    """Tells whether it is of a threshold that was tried, as 't0.5/loss'."""
    return re.fullmatch(r't(all|\d[\d.e-]*)', self.split) is not None

  def is_of_all(self, splits: Collection[str]) -> bool:
    """Tells whether every run of a suite has it, if its model can.

    Evaluators may measure more, of some models alone.

    Args:
      splits: of the suite.
    """
    return self.split in splits or self.is_fewshot

  @property
  def is_percent(self) -> bool:
    """Tells whether it is a fraction, which is written in percent."""
    return self.name.endswith((*_FRACTIONS, 'dropped'))

  @property
  def direction(self) -> float:
    """Returns 1 if higher is better, else -1."""
    return -1.0 if self.name.endswith(_LOWER_IS_BETTER) else 1.0

  @property
  def is_loss(self) -> bool:
    """Tells whether it is the loss on a split."""
    return self.name.endswith('/loss')

  @property
  def is_quality(self) -> bool:
    """Tells whether it belongs on an axis of quality."""
    return self.name.endswith((*_FRACTIONS, *_QUALITY))

  @property
  def is_of_experts(self) -> bool:
    """Tells whether models without experts have no such metric."""
    return 'moe/' in self.name

  @property
  def is_routing(self) -> bool:
    """Tells whether it says where tokens went."""
    return self.is_of_experts and self.name.rpartition('/')[2] in _ROUTING

  @property
  def factor(self) -> float:
    """Returns what a value is multiplied by to be written."""
    return 100.0 if self.is_percent else 1.0

  @property
  def title(self) -> str:
    """Returns the label with its unit."""
    return f'{self.label} (%)' if self.is_percent else self.label

  @property
  def unit(self) -> str:
    """Returns what a difference is counted in."""
    return 'points' if self.is_percent else ''

  def text(self, value: float, sign: bool = False) -> str:
    """Returns a value without its unit: '78.41', with a sign '+0.90'."""
    shown = value * self.factor
    plus = '+' if sign else ''
    digits = 2 if self.is_percent else _QUALITY.get(self._last)
    form = '.3g' if digits is None else f'.{digits}f'
    return f'{shown:{plus}{form}}'.replace('-', '−')

  @property
  def _last(self) -> str:
    return self.name.rpartition('/')[2]
