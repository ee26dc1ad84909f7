"""Peak rates, measured or from the table."""

import jax
import pytest

from softmoe.costs import peak


def test_peak_of_a_cpu_is_measured(mesh):
  assert peak.peak_flops(mesh(2, 1)) > 1e8


@pytest.mark.parametrize(
  'kind, flops',
  [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v4', 275e12),
    ('Abacus', None),
  ],
)
def test_peak_of_a_known_device(mesh, monkeypatch, kind, flops):
  class Device:
    device_kind = kind

  eight = mesh(8, 1)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'other')
  monkeypatch.setattr(jax, 'devices', lambda: [Device()])
  assert peak.peak_flops(eight) == (8 * flops if flops else None)
