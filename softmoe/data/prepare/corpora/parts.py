"""The splits of a corpus, and chance that assigns them."""

from softmoe.data.prepare import chance

SPLITS = ('train', 'val', 'test')  # what one has, those behind it have not

_TEST, _VAL = 0.05, 0.05  # of the names


def by_chance(name: str) -> str:
  """Returns the split of a document, the same on every machine."""
  at = chance.share(name)
  return 'test' if at < _TEST else 'val' if at < _TEST + _VAL else 'train'
