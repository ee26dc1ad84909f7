"""python -m softmoe.tables report SUITE."""

import pytest

from softmoe.errors import UserError
from softmoe.tables import __main__ as tables
from softmoe.tables import suite
from tests.tables.report import made_up

SUITE = """
from tests.tables.report import made_up

def get_suite():
  return made_up.suite()
"""


@pytest.fixture
def file(tmp_path):
  file = tmp_path / 'made_up.py'
  file.write_text(SUITE)
  return file


def report(file, results):
  tables.main(['report', str(file), f'--results={results}'])


def test_writes_both_files_and_tells_where(file, tmp_path, capsys):
  folder = made_up.write(tmp_path / 'results' / 'made_up', made_up.suite())
  (folder / 'vit-width32-seed0.json').write_text('{')
  report(file, tmp_path / 'results')
  out, warning = capsys.readouterr()
  assert out.splitlines() == [
    '23 of 24 runs are finished (vit-width32: 2 of 3).',
    str(folder / 'report.md'),
    str(folder / 'report.html'),
  ]
  (line,) = warning.splitlines()
  assert line.startswith(f'warning: {folder}/vit-width32-seed0.json: left out')
  text = (folder / 'report.md').read_text()
  assert f'python -m softmoe.tables run {file}' in text


def test_an_unknown_suite_and_no_results_are_one_line(file, tmp_path):
  with pytest.raises(UserError, match='SUITE'):
    tables.main(['report', 'mian'])
  with pytest.raises(UserError, match='with a finished run'):
    report(file, tmp_path)


@pytest.mark.parametrize(
  'name', ['experts', 'placement', 'scale', 'scale_fashion', 'tune']
)
def test_sweeps_of_all_kinds(name, tmp_path):
  """Two fields at once, words, no baseline, one seed: results are made up.

  Whatever is swept, models are held against the baseline, if there is one.
  """
  of = suite.load(suite.find(name))
  folder = made_up.write(tmp_path / name, of)
  tables.main(['report', name, f'--results={tmp_path}'])
  assert (folder / 'report.html').stat().st_size > 10_000
  text = (folder / 'report.md').read_text()
  assert (f'| over {of.baseline} |' in text) == bool(of.baseline)
  assert (f' beside {of.baseline}' in text) == bool(of.baseline)
