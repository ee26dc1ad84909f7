"""Colours of models: told from the card, and from each other by all eyes."""

import itertools
import pathlib
import re

import numpy as np
import pytest

from softmoe.tables.report import page
from softmoe.tables.report.plots import svg

# What each kind of eye makes of linear RGB. Machado, Oliveira, Fernandes, A
# Physiologically-based Model for Simulation of Color Vision Deficiency, 2009,
# severity 1.
EYES = {
  'normal': np.eye(3),
  'protan': [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  'deutan': [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
  'tritan': [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.303900],
  ],
}
TO_XYZ = np.array(
  [
    [0.4124, 0.3576, 0.1805],
    [0.2126, 0.7152, 0.0722],
    [0.0193, 0.1192, 0.9505],
  ]
)


def read(scheme):
  """Returns the style sheet's colours by name, as linear RGB."""
  text = (pathlib.Path(page.__file__).parent / 'page.css').read_text()
  light, dark = text.split('@media (prefers-color-scheme: dark)')
  found = re.findall(r'--(\w+): #(\w{6});', dark if scheme == 'dark' else light)
  return {name: linear(digits) for name, digits in found}


def linear(digits):
  c = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
  return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(colour):
  x = TO_XYZ @ np.clip(colour, 0, 1) / TO_XYZ.sum(1)
  f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
  return np.array([116 * f[1], 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_stand_out_from_the_card(scheme):
  """3 to 1 at least, as WCAG 2.1 asks of graphics (criterion 1.4.11)."""
  colours = read(scheme)
  light = {name: TO_XYZ[1] @ colour for name, colour in colours.items()}
  for i in range(svg.COLOURS):
    low, high = sorted([light[f'c{i}'], light['card']])
    assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize('eye', EYES)
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_stand_out_from_each_other(scheme, eye):
  """By 20 units of CIELAB at least; 2.3 is a just noticeable difference."""
  colours = read(scheme)
  seen = [
    lab(np.array(EYES[eye]) @ colours[f'c{i}']) for i in range(svg.COLOURS)
  ]
  for one, other in itertools.combinations(seen, 2):
    assert np.linalg.norm(one - other) >= 20
