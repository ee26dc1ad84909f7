"""Compiled programs as text: instructions, loops, bytes."""

import dataclasses

import jax
import pytest
from jax import numpy as jnp

from softmoe.moe.execution import rounds
from softmoe.plan import hlo

ROOM = rounds.Room(first=8, even=9, most=32)  # 2 or 7 rounds


def compiled(function, *arguments):
  return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def times(program):
  return {(turns, exact) for _, turns, exact in program.executed()}


def test_a_scan_runs_as_often_as_it_is_long_also_inside_another():
  def function(x):
    def outer(x, _):
      inner = lambda x, _: (jnp.sin(x @ x), ())
      return jax.lax.scan(inner, x, None, length=3)[0], ()

    return jax.lax.scan(outer, x, None, length=5)[0]

  program = compiled(function, jnp.ones((8, 8)))
  assert times(program) == {(1, True), (5, True), (15, True)}
  assert not program.has_open_loops()


def test_a_loop_that_the_data_end_is_counted_once_and_marked():
  halve = lambda x: jax.lax.while_loop(
    lambda x: jnp.sum(x) > 1, lambda x: jnp.sin(x @ x), x
  )
  program = compiled(halve, jnp.ones((8, 8)))
  assert (1, False) in times(program)
  assert program.has_open_loops()


@pytest.mark.parametrize('derive', [lambda f: f, lambda f: jax.grad(f, 1)])
def test_rounds_and_the_loops_in_them_turn_as_the_load_says(derive):
  def function(x, w, stop):
    def each(start, num_rows, arguments):
      w, x = arguments
      turn = lambda x, _: (jnp.sin(x @ w), ())
      return jax.lax.scan(turn, x + start, None, length=3)[0]

    # 8 rows, and 4 in each round that follows.
    return jnp.sum(rounds.total(each, ROOM, stop, (w, x)))

  ones = jnp.ones((8, 8))
  program = compiled(derive(function), ones, ones, jnp.int32(2))
  assert program.most_rounds() == 7
  # One round by itself, and one or six in the loop, of three turns each.
  assert times(program) == {(1, True), (3, True)}
  worst = dataclasses.replace(program, worst=True)
  assert times(worst) == {(1, True), (3, True), (6, True), (18, True)}


def test_branches_count_each_and_are_marked():
  def function(i, x):
    branches = [lambda x: x @ x, lambda x: jnp.sin(x) @ x]
    return jax.lax.switch(i, branches, x)

  program = compiled(function, jnp.int32(1), jnp.ones((64, 64)))
  assert [turn for turn in program.executed() if not turn[2]]
  assert not program.has_open_loops()


def test_a_line_is_read_with_its_layouts_comments_and_attributes():
  text = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

ENTRY %main_spmd (p.1: bf16[4,2]) -> (bf16[4,2], f32[3]) {
  %p.1 = bf16[4,2]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="a(b)"}
  %c = f32[3]{0:T(128)S(1)} constant({1, 2, 3})
  ROOT %t.2 = (bf16[4,2]{1,0}, /*index=1*/f32[3]{0:T(128)S(1)}) \
all-reduce(%p.1, /*index=1*/%c), replica_groups={{0,1}}, to_apply=%add
}
"""
  program = hlo.parse(text)
  main = program.computations[program.entry]
  assert (program.entry, main.root) == ('main_spmd', 't.2')
  root = main.instructions['t.2']
  assert (root.opcode, root.operands) == ('all-reduce', ('p.1', 'c'))
  assert root.called() == ['add']
  assert root.attribute('to_apply') == 'add'
  assert root.attribute('calls') == ''
  assert hlo.num_bytes(root.shape) == 4 * 2 * 2 + 3 * 4
  assert hlo.num_bytes(root.shape, memory=True) == 4 * 2 * 2
  assert main.instructions['p.1'].operands == ()


@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ('pred[8]{0}', 8),
    ('s4[8]{0}', 4),
    ('f8e4m3fn[2,3]', 6),
    ('u32[]', 4),
    ('token[]', 0),
    ('(f32[2]{0}, (bf16[4]{0}, s32[]))', 20),
    ('f64[<=4,2]', 64),
  ],
)
def test_bytes_of_a_shape(shape, size):
  assert hlo.num_bytes(shape) == size


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('HloModule m')
