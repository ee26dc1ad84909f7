"""The page without a browser: whole, well-formed, on its own."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET

import pytest

from tests.tables.report import made_up

VOID = {'meta', 'link', 'br'}
SVG = '{http://www.w3.org/2000/svg}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('results') / 'made_up'
  return made_up.write(folder, made_up.suite(), skip=2)


@pytest.fixture(scope='module')
def page(folder):
  return made_up.report(folder, made_up.suite()).read_text()


class Reader(html.parser.HTMLParser):
  """Checks that tags close in order, and collects ids, links and text."""

  def __init__(self):
    super().__init__()
    self.open, self.ids, self.links, self.text = [], [], [], []

  def handle_starttag(self, tag, attrs):
    if tag not in VOID:
      self.open.append(tag)
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name in ('href', 'src', 'data-link'):
        self.links.append(value)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


@pytest.fixture(scope='module')
def read(page):
  reader = Reader()
  reader.feed(page)
  return reader


def pictures(page):
  found = re.findall(r'<svg .*?</svg>', page, re.S)
  return [ET.fromstring(each) for each in found if 'aria-label' in each]


def test_tags_close_and_links_lead_somewhere(read):
  assert read.open == []
  assert len(read.ids) == len(set(read.ids))
  places = [link[1:] for link in read.links if link.startswith('#')]
  assert places and set(places) <= set(read.ids)


def test_nothing_is_loaded_from_elsewhere(page, read):
  assert {link for link in read.links if not link.startswith('#')} == {'data:,'}
  outside = page.replace('http://www.w3.org/2000/svg', '')
  assert not re.search(r'https?:|//[a-z]|url\(|@import', outside)


def test_every_mark_is_inside_its_picture(page):
  found = pictures(page)
  assert len(found) > 20
  for picture in found:
    _, _, width, height = map(float, picture.get('viewBox').split())
    for x, y in places(picture):
      assert 0 <= x <= width and 0 <= y <= height


def places(picture):
  """Yields where marks, lines and words are."""
  for each in picture.iter():
    kind = each.tag.removeprefix(SVG)
    if kind == 'polyline':
      for pair in each.get('points').split():
        yield tuple(map(float, pair.split(',')))
    elif kind == 'path':
      place = re.match(r'translate\((\S+) (\S+)\)', each.get('transform'))
      yield float(place[1]), float(place[2])
    elif kind == 'line':
      yield float(each.get('x1')), float(each.get('y1'))
      yield float(each.get('x2')), float(each.get('y2'))
    elif kind in ('text', 'circle'):
      names = ('x', 'y') if kind == 'text' else ('cx', 'cy')
      yield tuple(float(each.get(name)) for name in names)


def test_every_point_tells_its_run(page):
  names = [run.name for run in made_up.suite().runs]
  for picture in pictures(page):
    points = [g for g in picture.iter(f'{SVG}g') if 'pt' in g.get('class')]
    assert points
    for each in points:
      words = each.find(f'{SVG}title').text
      model = words.split(',')[0].split(':')[0]
      assert model in made_up.MODELS or words.split('\n')[0] in names


def test_every_figure_names_its_axes_and_models(page):
  for picture in pictures(page):
    assert picture.get('aria-label')
    words = [t.text for t in picture.iter(f'{SVG}text')]
    assert len(words) > 3
  legends = re.findall(r'<ul class="legend">(.*?)</ul>', page)
  assert legends and all('vit' in legend for legend in legends)


def test_sections_of_the_report(read):
  expected = {
    'headline',
    'results',
    'differences',
    'training-flops',
    'inference-flops',
    'seconds',
    'by-width',
    'models',
    'curves',
    'routing',
    'runs',
    'provenance',
  }
  assert expected <= set(read.ids)
  lacking = 'experts-width64: 2 of 3; soft-width64: 2 of 3'
  assert f'22 of 24 runs are finished ({lacking}).' in read.text


def test_without_times_the_command_is_named(tmp_path):
  of = made_up.suite(('vit', 'soft'), (32,))
  folder = made_up.write(tmp_path / 'made_up', of, timed=False)
  text = made_up.report(folder, of).read_text()
  assert 'No times yet: python -m softmoe.tables time made_up' in text
  assert 'training seconds (' not in text


def test_thresholds_that_were_tried_have_one_plot(tmp_path):
  of = made_up.suite(('vit', 'soft'), (32,))
  folder = made_up.write(tmp_path / 'made_up', of)
  for path in folder.glob('soft-*-seed*.json'):
    facts = json.loads(path.read_text())
    for t in (0.9, 0.2):
      facts['metrics'][f't{t}/accuracy'] = t
      facts['metrics'][f't{t}/moe/wanted'] = 10 * t
    path.write_text(json.dumps(facts))
  page = made_up.report(folder, of).read_text()
  (picture,) = [p for p in pictures(page) if 't0.2' in ET.tostring(p).decode()]
  assert picture.get('aria-label') == 'accuracy by experts wanted'
  tips = [t.text for t in picture.iter(f'{SVG}title')]
  means = [tip for tip in tips if tip.startswith('soft, width 32')]
  assert ['2 experts wanted' in tip for tip in means] == [True, False]
  assert any(tip.startswith('vit, width 32') for tip in tips)


def test_words_of_a_user_are_no_markup(tmp_path):
  of = made_up.suite(('vit',), (32,), 1)
  folder = made_up.write(tmp_path / 'made_up', of)
  facts = made_up.facts(of.runs[0], model='<b>&"', command='a < b > "c"')
  (folder / f'{of.runs[0].name}.json').write_text(json.dumps(facts))
  reader = Reader()
  reader.feed(made_up.report(folder, of).read_text())
  assert reader.open == [] and 'a < b > "c"' in ''.join(reader.text)
