"""The code in the documents runs as it stands."""

import pathlib
import re

import pytest

DOCUMENTS = ['README.md', 'docs/routers.md']


def blocks(path):
  text = pathlib.Path(path).read_text()
  return re.findall(r'```python\n(.*?)```', text, re.S)


@pytest.mark.parametrize('path', DOCUMENTS)
def test_python_blocks_run_one_after_another(path):
  found = blocks(path)
  assert found
  exec('\n'.join(found), {'__name__': 'document'})


def test_a_router_of_ones_own_takes_less_than_20_lines():
  (block,) = [b for b in blocks('docs/routers.md') if 'class Nearest' in b]
  router = block[block.index('class ') : block.index('layer = ')]
  assert len(router.strip().splitlines()) < 20
