"""Tables that line up in plain text and that Markdown reads as tables."""

import re

from softmoe.tables import markdown


def test_a_rule_under_every_title_and_columns_that_line_up():
  table = markdown.table(('Model', 'K', 'x|y'), [('soft', '2', '10.5')])
  assert table.splitlines() == [
    '| Model |  K | x\\|y |',
    '| ----- | -: | ---: |',
    '| soft  |  2 | 10.5 |',
  ]


def test_narrow_columns_have_rules_that_markdown_knows():
  """A delimiter is hyphens, with a colon before or behind them or without."""
  rule = markdown.table(('', 'a', 'b'), [('', '', '1')]).splitlines()[1]
  cells = [cell.strip() for cell in rule.strip('|').split('|')]
  assert all(re.fullmatch('-+:?', cell) for cell in cells)
