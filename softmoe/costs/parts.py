"""The parts of a model, as `jax.named_scope` names them in a program."""

import re

PARTS = (
  'attention',
  'mlp',
  'router',
  'dispatch',
  'exchange',
  'experts',
  'combine',
  'optimizer',
)
REST = 'the rest'
_PART = re.compile(rf'\b({"|".join(PARTS)})\b')


def of(name: str) -> str:
  """Returns the part that an instruction is of, the innermost that it names.

  Args:
    name: where it comes from, `op_name` in a compiled program.
  """
  found = _PART.findall(name)
  return found[-1] if found else REST
