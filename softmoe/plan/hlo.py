"""A compiled program's text as computations of instructions.

The text is what `jax.stages.Compiled.as_text` returns after optimization: XLA's
HLO, scheduled where the backend does so.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from softmoe.moe.execution import rounds

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?')
_CALLED = re.compile(
  r'\b(?:calls|body|to_apply|true_computation|false_computation|'
  r'branch_computations|called_computations)='
  r'(\{[^}]*\}|%?[\w.\-]+)'
)
_THREAD = re.compile(r'execution_thread="([^"]*)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = ('call', 'async-start', 'call-start', 'conditional')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the program.
    shape: what it returns, as written.
    opcode: for instance 'fusion' or 'all-to-all'.
    operands: names.
    attributes: all that follows the operands.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  literal: str  # what stands between the parentheses

  def called(self) -> list[str]:
    """Returns the computations that run when it does, conditions aside."""
    names = (m.group(1) for m in _CALLED.finditer(self.attributes))
    return [n for group in names for n in re.findall(r'[\w.\-]+', group)]

  def attribute(self, name: str) -> str:
    """Returns the word after `name=`, '' if there is none."""
    match = re.search(rf'\b{name}=%?([\w.\-]+)', self.attributes)
    return match.group(1) if match else ''

  def op_name(self) -> str:
    """Returns where it comes from, as JAX says; '' if that is not known."""
    match = _OP_NAME.search(self.attributes)
    return match.group(1) if match else ''

  def rounds(self) -> tuple[int, int] | None:
    """Returns the rounds of a loop over them, see `rounds.counts`, or None."""
    return rounds.counts(self.op_name()) if self.opcode == 'while' else None


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in the order in which they run.

  Attributes:
    name: unique in the program.
    instructions: by name.
    root: the name of the one whose result is returned.
    thread: what runs it beside the main cores, such as a TPU's 'sparsecore';
      '': they do.
  """

  name: str
  instructions: dict[str, Instruction]
  root: str
  thread: str = ''


@dataclasses.dataclass(frozen=True)
class Program:
  """All computations, and which of them is the first.

  Attributes:
    computations: by name.
    entry: the name of the first.
    worst: whether dropless experts need as many rounds as there may be; else
      their load is even.
  """

  computations: dict[str, Computation]
  entry: str
  worst: bool = False

  def executed(self) -> Iterator[tuple[Computation, int, bool]]:
    """Yields each computation that runs by itself, how often, and if exactly.

    Those inside a fusion or a reduction are part of an instruction and do not
    count. A loop whose number of turns is not a constant counts once, not
    exactly; so does every branch of a conditional. A loop over the rounds of
    dropless experts runs as often as `worst` says.
    """
    yield from self._walk(self.entry, 1, True)

  def has_open_loops(self) -> bool:
    """Tells whether a loop runs whose number of turns only the data know."""
    return any(
      instruction.opcode == 'while' and self.trip_count(instruction) is None
      for computation, _, _ in self.executed()
      for instruction in computation.instructions.values()
    )

  def most_rounds(self) -> int:
    """Returns the most rounds that any dropless experts may need."""
    every = dataclasses.replace(self, worst=True).executed()
    found = (
      (instruction.rounds() or (1, 1))[True]
      for computation, _, _ in every
      for instruction in computation.instructions.values()
    )
    return max(found)

  def _walk(self, name, times, exact):
    computation = self.computations[name]
    yield computation, times, exact
    for instruction in computation.instructions.values():
      if instruction.opcode == 'while':
        trips = self.trip_count(instruction)
        if trips == 0:
          continue
        body = instruction.attribute('body')
        yield from self._walk(body, times * (trips or 1), exact and bool(trips))
      elif instruction.opcode in _CALLS:
        sure = exact and instruction.opcode != 'conditional'
        for called in instruction.called():
          yield from self._walk(called, times, sure)

  def trip_count(self, loop: Instruction) -> int | None:
    """Returns how often the body of a `while` runs, None if that varies."""
    if found := loop.rounds():
      return found[self.worst] - 1
    known = _TRIPS.search(loop.attributes)
    if known:
      return int(known.group(1))
    # The loop of a `scan`: a counter from 0, below a constant.
    condition = self.computations[loop.attribute('condition')]
    root = condition.instructions[condition.root]
    compares = root.opcode == 'compare' and 'direction=LT' in root.attributes
    if not compares and root.opcode != 'fusion':
      return None
    return _constant_operand(condition, root)


def _constant_operand(condition: Computation, root: Instruction) -> int | None:
  """Returns the value of the only operand that is a constant."""
  operands = [condition.instructions[o] for o in root.operands]
  counts = [
    int(o.literal)
    for o in operands
    if o.opcode == 'constant' and o.shape.startswith(('s32', 'u32', 's64'))
  ]
  return counts[0] if len(counts) == 1 else None


def parse(text: str) -> Program:
  """Returns the program that `text` describes.

  Raises:
    ValueError: there is no entry computation.
  """
  computations, entry, lines = {}, '', iter(text.splitlines())
  for line in lines:
    match = _COMPUTATION.match(line)
    if not match:
      continue
    computation = _computation(match.group(2), lines)
    computations[computation.name] = computation
    entry = computation.name if match.group(1) else entry
  if not entry:
    raise ValueError('the text of a compiled program has an ENTRY computation')
  return Program(computations, entry)


def _computation(name: str, lines: Iterator[str]) -> Computation:
  instructions, root, thread = {}, '', ''
  for line in lines:
    if line.startswith('}'):
      found = _THREAD.search(line)
      thread = found.group(1) if found else ''
      break
    match = _INSTRUCTION.match(line)
    if match:
      instruction = _instruction(match.group(2), match.group(3))
      instructions[instruction.name] = instruction
      root = instruction.name if match.group(1) else root
  return Computation(name, instructions, root, thread)


def _instruction(name: str, text: str) -> Instruction:
  end = _closing(text) if text.startswith('(') else text.index(' ')
  shape, rest = text[:end], text[end:]
  opcode = _OPCODE.match(rest)
  if not opcode:
    raise ValueError(f'no instruction: {name} = {text[:200]}')
  begin = opcode.end() - 1
  end = begin + _closing(rest[begin:])
  literal = rest[begin + 1 : end - 1]
  return Instruction(
    name, shape, opcode.group(1), _names(literal), rest[end:], literal
  )


def _closing(text: str) -> int:
  """Returns the index after the parenthesis that closes the first one."""
  depth = 0
  for match in re.finditer(r'[()]', text):
    depth += 1 if match.group() == '(' else -1
    if depth == 0:
      return match.end()
  raise ValueError(f'unbalanced: {text[:200]}')


def _names(literal: str) -> tuple[str, ...]:
  """Returns the operands' names; a constant's literal has none."""
  return tuple(re.findall(r'%([\w.\-]+)', literal))


def num_bytes(shape: str, memory: bool = False) -> int:
  """Returns the bytes of a shape, without the padding of its layout.

  Args:
    shape: of an array or a tuple of arrays, as written.
    memory: count only what is in the device's main memory: a layout that names
      another memory space, such as `S(1)`, is on the chip.
  """
  total = 0
  for kind, sizes, layout in _ARRAY.findall(shape):
    if memory and 'S(' in layout:
      continue
    bits = _bits(kind)
    total += math.prod(map(_size, sizes.split(','))) * bits // 8
  return total


def _bits(kind: str) -> int:
  if kind == 'pred':
    return 8
  match = re.match(r'[a-z]+(\d+)', kind)
  return int(match.group(1)) if match else 0  # a token is nothing


def _size(text: str) -> int:
  return int(text.removeprefix('<=')) if text else 1
