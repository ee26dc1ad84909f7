"""Which arrays a state has: path, type and shape of each leaf."""

import pathlib
from typing import Any

import jax

from softmoe.errors import UserError


def describe(tree: Any) -> dict[str, str]:
  """Returns path -> type and shape, such as 'float32[384,10]', of each leaf."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (
      f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def compare(
  path: pathlib.Path, saved: dict[str, str], wanted: dict[str, str]
) -> None:
  """Raises a UserError if the saved leaves are not those that are wanted.

  Args:
    path: of the checkpoint.
    saved: its leaves, as `describe` says.
    wanted: those of the experiment.
  """
  for name in [*wanted, *saved]:
    there, here = saved.get(name, 'nothing'), wanted.get(name, 'nothing')
    if there != here:
      raise UserError(
        f'checkpoint {path}',
        f'{there} at {name}',
        f'this config has {here} there: it is of another model or optimizer',
      )
