"""Estimates as a person reads them."""

import pytest

from softmoe.plan import report


@pytest.mark.parametrize(('sure', 'end'), [(True, ''), (False, ' at least')])
def test_what_an_open_loop_hides_is_said(sure, end):
  rows = dict(report._PROGRAM)
  part = {
    'flops': {'program': 2e12, 'exact': sure},
    'traffic': 3 * 2**30,
    'open_loops': not sure,
  }
  assert rows['FLOP of the program, a device'](part) == '2.000 T' + end
  assert rows['memory traffic a device'](part) == '3.00 GiB' + end
