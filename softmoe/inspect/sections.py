"""Which figures the page has, in which order, under which words."""

from typing import Any

import numpy as np

from softmoe.inspect import numbers, samples
from softmoe.inspect.observed import Observed
from softmoe.tables.report.figures.marks import Figure
from softmoe.tables.report.figures.sections import Section
from softmoe.tables.report.plots import curves, pixels
from softmoe.tables.report.plots.svg import Style

_SLOTS = 256  # of a map of correlations

Found = dict[str, Any]  # what `write` puts into the JSON


def build(observed: Observed, found: Found) -> list[Section]:
  """Returns the sections, of the numbers that were found."""
  return [
    _samples(observed),
    _load(found),
    _weights(found),
    _tokens(found),
    _positions(observed, found),
    _similarity(found),
    _dropping(found),
  ]


def _samples(observed: Observed) -> Section:
  words = []
  if samples.of_patches(observed):
    words.append(
      'The weight of each patch in a slot, or for an expert that it reaches, '
      'as a share of the largest, which is written below. Slots or experts of '
      'the largest weights are shown.'
    )
  if samples.of_words(observed):
    words.append(
      'The number behind a token, and its colour, is the expert of the largest '
      'weight; a token without any gets nothing.'
    )
  return Section('samples', 'Samples', words, samples.figures(observed))


def _load(found: Found) -> Section:
  text = [
    'Experts in the order of their load: of a sparse router the part of the '
    'tokens that an expert keeps, of slots the mean weight of their outputs. '
    'Dropped is the part of the tokens that want an expert and are not kept.',
    'Tokens that get nothing from any expert: '
    + ', '.join(f'{k["name"]} {k["left_out"]:.1%}' for k in found['layers'])
    + '.',
  ]
  figures = []
  for key, title, unit in (
    ('load', 'Load of experts', 'share of the tokens'),
    ('dropped', 'Dropped by experts', 'share of those that want it'),
  ):
    ranked = {
      one['name']: _ranks(sorted(one[key], reverse=True))
      for one in found['layers']
      if one[key] is not None
    }
    if ranked:
      figures.append(_lines(title, 'rank', unit, ranked))
  return Section('load', 'Load and drops', text, figures)


def _weights(found: Found) -> Section:
  text = [
    'How much of its whole weight a token gets from its largest weights, on '
    'average; and the quantiles of all weights.'
  ]
  each = lambda line: {k['name']: line(k) for k in found['layers']}
  figures = [
    _lines(
      'The largest combine weights',
      'slots or experts',
      'share of the weight',
      each(lambda k: _ranks(k['cumulative'])),
    ),
    _lines(
      'Distribution of combine weights',
      '% of the weights',
      'at most this large',
      each(lambda k: _quantiles(k['quantiles'])),
    ),
  ]
  return Section('weights', 'Combine weights', text, figures)


def _tokens(found: Found) -> Section:
  text = [
    'The sum of what a token gives to all slots: alike tokens would give slots '
    '/ tokens each. Of a sparse router, what the gates of its experts sum to. '
    'And of how many tokens a part of a slot is made, slots in this order.'
  ]
  figures = [
    _lines(
      'What tokens give',
      '% of the tokens',
      'at most this much',
      {k['name']: _quantiles(k['contribution']) for k in found['layers']},
    )
  ]
  for part in map(str, numbers.PARTS):
    ranked = {
      k['name']: _ranks(sorted(k['tokens_a_slot'][part]))
      for k in found['layers']
      if k['tokens_a_slot']
    }
    if ranked:
      title = f'Tokens that make {float(part):.0%} of a slot'
      figures.append(_lines(title, 'rank', 'tokens', ranked))
  return Section('tokens', 'Tokens in slots', text, figures)


def _positions(observed: Observed, found: Found) -> Section:
  text = [
    'Experts a token. Of slots, where every expert has a share, it is the '
    'number of equal shares of the same entropy.'
  ]
  by = {k['name']: np.array(k['by_position']) for k in found['layers']}
  figures = [
    _position_map(k.name, by.pop(k.name), samples.grid(observed))
    for k in samples.of_patches(observed)
  ]
  if by:
    lines = {name: _ranks(values) for name, values in by.items()}
    title = 'By position in the text' if figures else 'By position'
    figures.append(_lines(title, 'position', 'experts a token', lines))
  return Section('positions', 'Experts a token', text, figures)


def _position_map(
  name: str, values: np.ndarray, shape: tuple[int, int]
) -> Figure:
  title = f'Experts a token by position, {name}'
  values = samples.as_grid(values, shape)
  ends = float(values.min()), float(values.max())
  return Figure(title, pixels.map_of(title, values, *ends), [])


def _similarity(found: Found) -> Section:
  figures, text = [], ['Correlation of the parameters of each two slots.']
  for one in found['layers']:
    if one['similarity'] is None:
      continue
    title = f'Similarity of slots, {one["name"]}'
    matrix = np.array(one['similarity']['matrix'])[:_SLOTS, :_SLOTS]
    figures.append(
      Figure(title, pixels.map_of(title, matrix, -1.0, 1.0, 0.0), [])
    )
    means = (
      f'{kind} an expert {value:.3f}'.replace('between an', 'between')
      for kind in ('within', 'between')
      if (value := one['similarity'][kind]) is not None
    )
    text.append(f'{one["name"]}, mean {", ".join(means)}.')
  if not figures:
    text = ['The router has no parameters of slots or experts.']
  return Section('similarity', 'Similarity of slots', text, figures)


def _dropping(found: Found) -> Section:
  text = [
    'Metrics of the examples with experts dropped that are drawn for each '
    'layer: they return 0, and no other takes their place. Means of three '
    'draws.'
  ]
  figures = [
    _lines(
      f'Without experts: {name}',
      '% of experts dropped',
      name,
      {name: [(100 * one['share'], one[name]) for one in found['dropping']]},
    )
    for name in found['dropping'][0]
    if name not in ('share', 'draws')
  ]
  return Section('dropping', 'Dropping experts', text, figures)


def _quantiles(values: Any) -> curves.Line:
  return list(zip(100 * numbers.QUANTILES, values, strict=True))


def _ranks(values: Any) -> curves.Line:
  return [(i + 1.0, float(value)) for i, value in enumerate(values)]


def _lines(
  title: str, x_title: str, y_title: str, lines: dict[str, curves.Line]
) -> Figure:
  drawn = [
    curves.Curve(name, Style.of(i), {name: line})
    for i, (name, line) in enumerate(lines.items())
  ]
  picture = curves.draw(title, y_title, drawn, log=False, x_title=x_title)
  return Figure(title, picture, [(c.style, c.label) for c in drawn])
