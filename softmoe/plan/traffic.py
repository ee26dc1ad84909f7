"""Bytes that a compiled program moves between a device and its main memory.

The rules are those of XLA's cost analysis, which counts the body of a loop
once: here it counts as often as it runs. Every instruction reads its operands
and writes its result, what is fused moves nothing, and of an operand that is
only sliced the slice alone is read. What stays in on-chip memory costs nothing.
What a GPU kernel of our own moves is not in the text: see `kernels`.
"""

import collections

from softmoe.costs import parts
from softmoe.plan import hlo

_FREE = frozenset(
  (
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'while',
    'conditional',
    'call',
    'after-all',
    'async-start',  # what it starts is a computation of its own
    'call-start',
    'iota',
    'partition-id',
    'replica-id',
    'optimization-barrier',
    'async-update',
    'async-done',
  )
)
_KERNEL = 'custom_call_target="__gpu$xla.gpu.triton"'
# The operand that is updated where it is.
_UPDATED = {'dynamic-update-slice': 0, 'ragged-all-to-all': 1}
_SLICES = ('dynamic-slice', 'slice', 'gather')


def num_bytes(program: hlo.Program) -> int:
  """Returns the bytes read and written in a step, on one device."""
  return sum(by_part(program).values())


def by_part(program: hlo.Program) -> dict[str, int]:
  """Returns the bytes of each part of the model, see `costs.parts`."""
  total: dict[str, int] = collections.Counter()
  for computation, times, _ in program.executed():
    for name, moved in map_bytes(program, computation).items():
      origin = computation.instructions[name].op_name()
      total[parts.of(origin)] += times * moved
  return dict(total)


def map_bytes(
  program: hlo.Program, computation: hlo.Computation
) -> dict[str, int]:
  """Returns the bytes that each instruction of a computation moves."""
  return {
    name: _read(program, computation, instruction)
    + _written(program, computation, instruction)
    for name, instruction in computation.instructions.items()
    if instruction.opcode not in _FREE
    and _KERNEL not in instruction.attributes
    and not instruction.opcode.endswith('-done')
  }


def _read(program, computation, instruction) -> int:
  names = instruction.operands
  return sum(
    _looked_at(
      program, computation, instruction, i, computation.instructions[n]
    )
    for i, n in enumerate(names)
  )


def _looked_at(program, computation, user, index, value) -> int:
  """Returns the bytes of operand `index`, `value`, that `user` looks at."""
  whole = hlo.num_bytes(value.shape, memory=True)
  if user.opcode == 'fusion' and whole:
    fused = program.computations[user.attribute('calls')]
    return min(whole, _used(program, fused, _parameter(fused, index)))
  opcode = user.opcode.removesuffix('-start')
  if index == 0 and opcode in _SLICES:
    return min(whole, _returned(computation, user))
  return 0 if _UPDATED.get(opcode) == index else whole


def _used(program, fused, value: hlo.Instruction) -> int:
  """Returns the bytes of `value` that a fused computation looks at."""
  total = 0
  for user in fused.instructions.values():
    for index, name in enumerate(user.operands):
      if name != value.name:
        continue
      total += (
        _used(program, fused, user)
        if user.opcode == 'bitcast' and user.name != fused.root
        else _looked_at(program, fused, user, index, value)
      )
  return total


def _parameter(fused: hlo.Computation, index: int) -> hlo.Instruction:
  return next(
    i
    for i in fused.instructions.values()
    if i.opcode == 'parameter' and i.literal == str(index)
  )


def _returned(computation, instruction, memory=False) -> int:
  """Returns the bytes of the result, `memory` as of `hlo.num_bytes`."""
  whole = hlo.num_bytes(instruction.shape, memory)
  opcode = instruction.opcode
  if not opcode.endswith('-start') or opcode == 'all-reduce-start':
    return whole
  # What others start comes with the operands, and then with the result.
  operands = (computation.instructions[n] for n in instruction.operands)
  return max(whole - sum(hlo.num_bytes(o.shape, memory) for o in operands), 0)


def _written(program, computation, instruction) -> int:
  """Returns the bytes that an instruction writes to main memory."""
  whole = _returned(computation, instruction, memory=True)
  if not whole:
    return 0
  operands = [computation.instructions[n] for n in instruction.operands]
  if instruction.opcode == 'dynamic-update-slice':
    return hlo.num_bytes(operands[1].shape)
  if instruction.opcode == 'bitcast' and computation.name != program.entry:
    return _written(program, computation, operands[0])
  if instruction.opcode == 'tuple':
    return sum(_written(program, computation, o) for o in operands)
  if instruction.opcode == 'fusion':
    fused = program.computations[instruction.attribute('calls')]
    return min(whole, _written(program, fused, fused.instructions[fused.root]))
  return whole
