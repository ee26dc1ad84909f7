"""The floor plan: an import points down, and rooms form no circle."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path('softmoe')

# From the top; a room uses what stands below it, and of its own floor what
# does not use it.
FLOORS = (
  ('commands', 'generate', 'inspect'),
  ('bench', 'plan', 'tables', 'evaluation', 'training'),
  ('weights',),
  ('runs', 'costs'),
  ('experiment',),
  ('tasks',),
  ('models',),
  ('moe', 'data', 'optim'),
  ('sharding', 'recompute', 'config', 'process'),
  ('ranges',),
  ('errors',),
)
HEIGHT = {room: -i for i, floor in enumerate(FLOORS) for room in floor}


def modules():
  """Returns the path of every module by its dotted name."""
  names = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    if 'configs' not in path.parts:
      parts = path.with_suffix('').parts
      parts = parts[:-1] if parts[-1] == '__init__' else parts
      names['.'.join(parts)] = path
  return names


MODULES = modules()


def imports(path):
  """Yields the modules of the package that a module imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(
      'softmoe'
    ):
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        yield full if full in MODULES else node.module
    elif isinstance(node, ast.Import):
      yield from (a.name for a in node.names if a.name in MODULES)


def room(module):
  return module.split('.')[1] if '.' in module else None


def folder(module):
  """Returns the folder that a module is in, a package being its own."""
  path = MODULES[module].parent
  return path.as_posix()


def edges(place):
  """Returns {(from, to): the module it is seen in} between places."""
  found = {}
  for module, path in MODULES.items():
    for target in imports(path):
      pair = place(module), place(target)
      if None not in pair and pair[0] != pair[1]:
        found[pair] = str(path)
  return found


def test_every_room_has_a_floor():
  rooms = {room(module) for module in MODULES} - {None}
  assert rooms <= set(HEIGHT), 'put the new room on a floor'


def test_no_import_points_upwards():
  up = {
    pair: path
    for pair, path in edges(room).items()
    if HEIGHT[pair[0]] < HEIGHT[pair[1]]
  }
  assert not up


def module(name):
  return name


def is_inside(start, end):
  """Tells whether one folder holds the other: they are one place."""
  return start.startswith(f'{end}/') or end.startswith(f'{start}/')


@pytest.mark.parametrize('place', [room, folder, module])
def test_no_circle(place):
  """Between rooms, between folders beside each other, between modules."""
  graph = {}
  for (start, end), path in edges(place).items():
    if not is_inside(start, end):
      graph.setdefault(start, {})[end] = path

  def reach(start):
    seen, todo = set(), [start]
    while todo:
      for end in graph.get(todo.pop(), {}):
        if end not in seen:
          seen.add(end)
          todo.append(end)
    return seen

  circles = {start for start in graph if start in reach(start)}
  assert not circles, {start: graph[start] for start in circles}
