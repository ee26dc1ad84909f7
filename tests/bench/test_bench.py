"""Every layer of the benchmark, tiny."""

import json

import pytest

from softmoe.bench import __main__ as command
from softmoe.bench import cases, machine, measure, table
from softmoe.errors import UserError

pytestmark = pytest.mark.usefixtures('launched')
TINY = cases.Size(examples=2, tokens=64, width=16, mlp_dim=64)
RATES = machine.Rates(flops=1e9, memory=1e12)


@pytest.fixture(scope='module')
def rows():
  return measured('Soft MoE', 'Top-8, dropless')


def measured(*layers):
  found = measure.measure(TINY, layers, dtype='float32', rates=RATES, rounds=2)
  return {(row.layer, row.kind): row for row in found}


@pytest.mark.slow
def test_every_layer_has_both_passes():
  rows = measured(*cases.LAYERS)
  names = (measure.DENSE, *cases.LAYERS)
  assert list(rows) == [(n, kind) for n in names for kind in measure.PASSES]
  assert all(row.seconds > 0 and row.compiling > 0 for row in rows.values())


def test_the_dense_layer_is_the_measure(rows):
  dense = rows[measure.DENSE, 'step']
  assert dense.of_tokens == 1 and dense.of_flops is None


def test_the_floor_is_of_what_runs(rows):
  flops = 4 * 2 * 64 * 16 * 64
  assert rows[measure.DENSE, 'forward'].floor == flops / 1e9
  assert rows[measure.DENSE, 'step'].floor == 3 * flops / 1e9
  # A slot of each of 128 experts for 64 tokens.
  soft = rows['Soft MoE', 'forward']
  assert soft.executed == 2
  assert soft.floor == pytest.approx(2 * flops / 1e9)
  # Eight experts of an eighth of the units.
  assert rows['Top-8, dropless', 'forward'].executed >= 8


def test_memory_can_be_the_floor():
  assert machine.Rates(10.0, 2.0).floor(5.0, 4.0) == 2
  assert machine.Rates(10.0, 2.0).floor(50.0, 4.0) == 5


def test_rates_are_measured(one_device):
  rates = machine.measure('float32', size=64)
  assert rates.flops > 1e6 and rates.memory > 1e6


def test_the_command(one_device, monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(cases.SIZES, 'text', TINY)
  monkeypatch.setattr(machine, 'measure', lambda dtype: RATES)
  path = tmp_path / 'report.json'
  words = ['--sizes', 'text', '--layers', 'Soft MoE', '--rounds=1']
  command.main([*words, f'--json={path}'])
  printed = capsys.readouterr().out
  assert printed.startswith('| text')
  assert 'GFLOP/s' in printed.splitlines()[-1]
  report = json.loads(path.read_text())
  assert [r['layer'] for r in report['sizes']['text']][::2] == [
    'Dense',
    'Soft MoE',
  ]
  assert report['rates']['flops'] == 1e9
  with pytest.raises(UserError, match='a new file'):
    command.main([*words, f'--json={path}'])


def test_bad_words():
  with pytest.raises(UserError, match="invalid choice: 'XL'"):
    command.main(['--sizes', 'XL'])


def test_a_table_lines_up(rows):
  lines = table.write('tiny', list(rows.values())).splitlines()
  assert len({len(line) for line in lines}) == 1
