"""What pages are made of: the frame, tables and figures, as HTML."""

import pathlib
from collections.abc import Iterable
from html import escape

from softmoe.tables.report.figures.marks import Figure
from softmoe.tables.report.figures.sections import Section
from softmoe.tables.report.plots import svg


def document(title: str, body: Iterable[str]) -> str:
  """Returns a whole page, which asks nothing of any other."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<link rel="icon" href="data:,">'
    f'<title>{escape(title)}</title><style>{_file("page.css")}</style>'
    f'</head><body>{"".join(body)}<div id="tip" role="status" hidden></div>'
    f'<script>{_file("page.js")}</script></body></html>\n'
  )


def header(title: str, status: str) -> str:
  """Returns the title, and a line below it."""
  return (
    f'<header><h1>{escape(title)}</h1>'
    f'<p class="status">{escape(status)}</p></header>'
  )


def contents(places: dict[str, str]) -> str:
  """Returns links to places of the page, given their titles by key."""
  links = (
    f'<a href="#{escape(k)}">{escape(title)}</a>' for k, title in places.items()
  )
  return f'<nav aria-label="Sections">{" ".join(links)}</nav>'


def section(section: Section, more: str = '') -> str:
  """Returns a section; `more` HTML comes behind its figures."""
  text = ''.join(f'<p>{escape(line)}</p>' for line in section.text)
  return (
    f'<section id="{escape(section.key)}"><h2>{escape(section.title)}</h2>'
    f'{text}{figures(section.figures)}{more}</section>'
  )


def table(titles: Iterable[str], rows: Iterable[str]) -> str:
  """Returns a table of rows that `row` made."""
  head = ''.join(f'<th scope="col">{escape(title)}</th>' for title in titles)
  return (
    f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def row(key: str, head: str, cells: str) -> str:
  """Returns a row with an id, given its cells as HTML."""
  return f'<tr id="{escape(key)}"><th scope="row">{head}</th>{cells}</tr>'


def figures(those: Iterable[Figure]) -> str:
  """Returns plots with their titles and legends."""
  return f'<div class="figures">{"".join(map(_figure, those))}</div>'


def provenance(facts: dict[str, str], commands: Iterable[str]) -> str:
  """Returns where the numbers come from."""
  told = ''.join(
    f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
    for name, value in facts.items()
  )
  lines = escape('\n'.join(commands))
  return (
    '<section id="provenance"><h2>Where the numbers come from</h2>'
    f'<dl>{told}</dl><pre class="scroll" tabindex="0">{lines}</pre>'
    '</section>'
  )


def _figure(figure: Figure) -> str:
  keys = ''.join(
    f'<li>{svg.legend_marker(style)}{escape(words)}</li>'
    for style, words in figure.legend
  )
  legend = f'<ul class="legend">{keys}</ul>' if keys else ''
  return (
    f'<figure><figcaption>{escape(figure.title)}</figcaption>{figure.picture}'
    f'{legend}</figure>'
  )


def _file(name: str) -> str:
  return (pathlib.Path(__file__).parent / name).read_text()
