"""The page in a headless browser: on a phone and on a desk."""

import pytest

from softmoe.inspect import write
from tests import browser
from tests.inspect import runs

pytestmark = pytest.mark.slow  # for its package: `tests/browser.py` says which

# What each plot takes of the window, as it is laid out.
BOXES = """
[...document.querySelectorAll('figure > svg')].map((svg) => {
  const box = svg.getBoundingClientRect();
  const inside = [...svg.querySelectorAll('.m, text, polyline, image')].map(
    (mark) => mark.getBoundingClientRect()
  );
  return {
    left: box.left, right: box.right, width: box.width, height: box.height,
    marks: inside.length,
    outside: inside.filter((b) => b.left < box.left - 1
      || b.right > box.right + 1 || b.top < box.top - 1
      || b.bottom > box.bottom + 1).length,
    letters: Math.min(...[...svg.querySelectorAll('text')].map(
      (t) => t.getBoundingClientRect().height)),
  };
})
"""
# Tokens that have an expert, and how many colours these have.
COLOURS = """
(() => {
  const spans = [...document.querySelectorAll('.tokens span[style]')];
  const of = spans.map((span) => getComputedStyle(span).backgroundColor);
  return [spans.length, new Set(of).size];
})()
"""


@pytest.fixture(scope='module', params=['soft', 'capacity', 'text'])
def page(request, tiny, tmp_path_factory):
  if not browser.find():
    pytest.fail(browser.INSTALL)
  folder = tmp_path_factory.mktemp(request.param)
  if request.param == 'text':
    moe = dict(router='tokens_choice', blocks=(1,), num_experts=4)
    runs.text(folder, **moe)
  else:
    changes = runs.CAPACITY if request.param == 'capacity' else {}
    runs.images(tiny, folder, **changes)
  write.write(write.Run(folder, 'latest', '', 512), folder)
  return folder / 'inspect.html'


@pytest.mark.parametrize(
  ('width', 'dark', 'touch'), [(400, True, True), (1400, False, False)]
)
def test_every_plot_is_visible_and_nothing_overflows(page, width, dark, touch):
  with browser.opened(page, width, 900, dark, touch) as tab:
    boxes = tab.evaluate(BOXES)
    assert len(boxes) >= 6
    for box in boxes:
      assert box['width'] > 300 and box['height'] > 80
      assert box['left'] >= 0 and box['right'] <= width
      assert box['marks'] > 1 and box['outside'] == 0
      assert box['letters'] > 9  # pixels
    wide = 'document.documentElement.scrollWidth'
    assert tab.evaluate(wide) == width
    if 'class="tokens"' in page.read_text():
      tokens, colours = tab.evaluate(COLOURS)
      assert tokens > 10 and 1 < colours <= 4
    assert tab.errors == []
    away = [url for url in tab.requests if not url.startswith('data:')]
    assert away == [page.resolve().as_uri()]
