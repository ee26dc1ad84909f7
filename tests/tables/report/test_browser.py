"""The page in a headless browser: on a phone and on a desk."""

import re

import pytest

from tests import browser
from tests.tables.report import made_up

pytestmark = pytest.mark.slow  # for its package: `tests/browser.py` says which

# What each plot takes of the window, as it is laid out.
BOXES = """
[...document.querySelectorAll('figure > svg')].map((svg) => {
  const box = svg.getBoundingClientRect();
  const inside = [...svg.querySelectorAll('.m, text, polyline')].map(
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


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  if not browser.find():
    pytest.fail(browser.INSTALL)
  of = made_up.suite()
  folder = tmp_path_factory.mktemp('results') / 'made_up'
  return made_up.report(made_up.write(folder, of, skip=2), of)


@pytest.mark.parametrize(
  ('width', 'dark', 'touch'),
  [(375, False, True), (400, True, True), (1400, False, False)],
)
def test_every_plot_is_visible_and_nothing_overflows(page, width, dark, touch):
  with browser.opened(page, width, 900, dark, touch) as tab:
    boxes = tab.evaluate(BOXES)
    assert len(boxes) > 20
    for box in boxes:
      assert box['width'] > 300 and box['height'] > 100
      assert box['left'] >= 0 and box['right'] <= width
      assert box['marks'] > 3 and box['outside'] == 0
      assert box['letters'] > 9  # pixels
    wide = 'document.documentElement.scrollWidth'
    assert tab.evaluate(wide) == width
    assert tab.errors == []
    assert tab.requests == [page.resolve().as_uri()]


def test_a_tap_tells_the_runs_of_a_point(page):
  with browser.opened(page, 400, 900, touch=True) as tab:
    place = tab.evaluate("""(() => {
      const mark = document.querySelector('#training-flops .pt .m');
      mark.scrollIntoView({block: 'center', behavior: 'instant'});
      const box = mark.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    })()""")
    hidden = "document.getElementById('tip').hidden"
    assert tab.evaluate(hidden)
    tab.tap(*place)
    words = tab.evaluate("document.getElementById('tip').innerText")
    assert not tab.evaluate(hidden)
    assert 'vit, width 32' in words and 'vit-width32-seed0' in words
    box = tab.evaluate("""(() => {
      const box = document.getElementById('tip').getBoundingClientRect();
      return [box.left, box.right];
    })()""")
    assert box[0] >= 0 and box[1] <= 400
    tab.tap(5, 5)
    assert tab.evaluate(hidden)


def test_the_pointer_tells_a_seed(page):
  with browser.opened(page, 1400, 900) as tab:
    place = tab.evaluate("""(() => {
      const mark = document.querySelector('#differences .pt .s');
      mark.scrollIntoView({block: 'center', behavior: 'instant'});
      const box = mark.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    })()""")
    tab.point(*place)
    words = tab.evaluate("document.getElementById('tip').innerText")
    assert re.match(r'tokens, width 32, seed \d\n[+−]\d', words)
