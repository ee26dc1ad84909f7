"""The cost tables as Markdown."""

from collections.abc import Callable
from typing import Any, NamedTuple

from softmoe.tables import markdown
from softmoe.tables.cost.figures import Figures

TITLES = {
  '1': 'Table 1: long runs',
  '8': 'Table 8: all long runs',
  '9': 'Table 9: short runs, 300,000 steps',
  'xmoe': "XMoE's language models: GPT-2 small, 1,024 tokens",
}
LEGEND = (
  '`paper`: as printed. All else is counted here, on the models themselves.'
  ' GFLOP: forward, of an image, a multiply and an add being two.'
  " 1.5 x: the paper's exaFLOP, 1.5 times GFLOP times images."
  ' 3 x: what training computes.'
  " One-hot: with dispatch and combine as products, which the authors' code"
  ' computes and this package does not; trained, five sixths of them count,'
  ' since the one-hot array of dispatch has no gradient.'
  ' C: capacity factor; buffer: tokens of a group that an expert keeps; group:'
  ' in tokens.'
  ' Of language models, MFLOP are of a token, of all and of experts alone; K:'
  ' experts of a token, of XMoE an example of what its tokens may decide;'
  " reference: parameters by the sizes in the authors' scripts."
)
NAMES = {
  'dense': 'ViT',
  'soft': 'Soft MoE',
  'experts': 'Experts Choice',
  'tokens': 'Tokens Choice',
}


class Column(NamedTuple):
  """A column: its heading, the figure it shows, how, and on which side."""

  heading: str
  key: str
  show: Callable[[Any], str] = str
  left: bool = False


def _sized(value: int) -> str:
  return f'{value / 1e6:,.1f}M' if value < 1e9 else f'{value / 1e9:.2f}B'


_number = '{:,}'.format
_tenths = '{:,.1f}'.format
_percent = '{:+.1%}'.format

_MODEL = (
  Column('Model', 'model', left=True),
  Column('Router', 'routing', NAMES.__getitem__, left=True),
  Column('Experts', 'experts'),
)
_DAYS = (
  Column('TPUv3-days, paper', 'tpuv3_days_paper', _tenths),
  Column('Note', 'note', left=True),
)
LONG = (
  *_MODEL,
  Column('Steps', 'steps', _number),
  Column('Cooldown', 'cooldown', _number),
  Column('Parameters, paper', 'params_paper'),
  Column('ours', 'params', _sized),
  Column('same digits', 'params_same_digits', ('no', 'yes').__getitem__),
  Column('Active', 'params_active', _sized),
  Column('GFLOP, paper', 'gflop_paper', _tenths),
  Column('ours', 'gflop', _tenths),
  Column('diff.', 'gflop_difference', _percent),
  Column('exaFLOP, paper', 'exaflop_paper', _tenths),
  Column('1.5 x', 'exaflop', _tenths),
  Column('diff.', 'exaflop_difference', _percent),
  Column('3 x', 'exaflop_true', _tenths),
  *_DAYS,
)
SHORT = (
  Column('Run', 'ref'),
  *_MODEL,
  Column('Group', 'group', _number),
  Column('K', 'k'),
  Column('C', 'c'),
  Column('Buffer', 'capacity'),
  Column('Parameters', 'params', _sized),
  Column('Active', 'params_active', _sized),
  Column('GFLOP', 'gflop', _tenths),
  Column('one-hot', 'gflop_one_hot', _tenths),
  Column('exaFLOP, paper', 'exaflop_paper', _tenths),
  Column('1.5 x', 'exaflop', _tenths),
  Column('diff.', 'exaflop_difference', _percent),
  Column('1.5 x, one-hot', 'exaflop_one_hot', _tenths),
  Column('diff.', 'exaflop_one_hot_difference', _percent),
  Column('3 x', 'exaflop_true', _tenths),
  *_DAYS,
)
LANGUAGE = (
  Column('Model', 'model', left=True),
  Column('Experts', 'experts'),
  Column('Hidden', 'hidden', _number),
  Column('K', 'k'),
  Column('Parameters, reference', 'params_reference'),
  Column('ours', 'params', _sized),
  Column('same digits', 'params_same_digits', ('no', 'yes').__getitem__),
  Column('MFLOP', 'mflop', _tenths),
  Column('experts', 'mflop_experts', _tenths),
)
COLUMNS = {'1': LONG, '8': LONG, '9': SHORT, 'xmoe': LANGUAGE}


def section(table: str, rows: list[Figures]) -> str:
  """Returns one table with its heading."""
  columns = COLUMNS[table]
  rows_ = [[_cell(column, row) for column in columns] for row in rows]
  headings = [column.heading for column in columns]
  left = [i for i, column in enumerate(columns) if column.left]
  body = markdown.table(headings, rows_, left)
  return f'## {TITLES[table]}\n\n{body}'


def _cell(column: Column, row: Figures) -> str:
  value = row[column.key]
  return '' if value is None else column.show(value)
