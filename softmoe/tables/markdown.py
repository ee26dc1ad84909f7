"""Markdown tables whose columns line up in plain text, too."""

from collections.abc import Collection, Sequence


def table(
  titles: Sequence[str],
  rows: Sequence[Sequence[str]],
  left: Collection[int] = (0,),
) -> str:
  """Returns a table; columns are flush right, those in `left` flush left."""
  lines = [[c.replace('|', '\\|') for c in line] for line in (titles, *rows)]
  # A rule that says flush right takes two characters: '-:'.
  widths = [max(2, *map(len, column)) for column in zip(*lines, strict=True)]
  ends = ['-' if i in left else ':' for i in range(len(widths))]
  rule = ['-' * (w - 1) + end for w, end in zip(widths, ends, strict=True)]
  lines.insert(1, rule)
  pad = [str.ljust if i in left else str.rjust for i in range(len(widths))]
  padded = (
    ' | '.join(f(c, w) for f, c, w in zip(pad, line, widths, strict=True))
    for line in lines
  )
  return '\n'.join(f'| {line} |' for line in padded)
