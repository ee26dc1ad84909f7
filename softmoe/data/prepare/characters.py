"""The characters of the glyphs, by the rows of JIS X 0208."""

from softmoe.data.prepare import chance

_OTHERS = 500


def classes() -> str:
  """Returns the classes: the 2,965 kanji of level 1."""
  return _rows(0xB0, 0xCF)


def others() -> str:
  """Returns 500 kanji of level 2, by chance, for what has seen none of them."""
  level_2 = sorted(_rows(0xD0, 0xF4), key=chance.share)
  return ''.join(level_2[:_OTHERS])


def _rows(first: int, last: int) -> str:
  """Returns the characters of some rows, as EUC-JP has them."""
  codes = (
    bytes((row, cell))
    for row in range(first, last + 1)
    for cell in range(0xA1, 0xFF)
  )
  return ''.join(code.decode('euc_jp', 'ignore') for code in codes)
