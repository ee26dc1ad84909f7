"""Memory traffic against XLA's own count, and loops beyond it."""

import jax
import pytest
from jax import numpy as jnp

from softmoe.plan import hlo, traffic


def compiled(function, *arguments):
  compiled = jax.jit(function).lower(*arguments).compile()
  return hlo.parse(compiled.as_text()), compiled.cost_analysis()


def mlp(x, w):
  return jnp.sum(jax.nn.gelu(x @ w) @ w.T, axis=0)


@pytest.mark.parametrize(
  'function',
  [
    mlp,
    jax.grad(lambda x, w: jnp.sum(mlp(x, w))),
    lambda x, w: jax.lax.dynamic_update_slice(x * 2, w[:1] + 1, (3, 0)),
    lambda x, w: jax.lax.dynamic_slice(x, (w[0, 0].astype(int), 0), (2, 64)),
    lambda x, w: jax.nn.softmax(x @ w),
  ],
)
def test_without_loops_it_is_the_compilers_count(function):
  program, cost = compiled(function, jnp.ones((96, 64)), jnp.ones((64, 64)))
  assert traffic.num_bytes(program) == pytest.approx(
    cost['bytes accessed'], rel=0.02
  )


def test_the_layers_of_a_scan_are_each_read_once():
  """Of the stacked weights a turn reads its own slice, not all of them."""
  layers, width = 64, 128
  weights = jnp.ones((layers, width, width))
  body = lambda x, w: (jnp.tanh(x @ w), ())
  program, _ = compiled(
    lambda x, w: jax.lax.scan(body, x, w)[0], jnp.ones((1, width)), weights
  )
  moved = traffic.num_bytes(program)
  assert weights.nbytes <= moved < 4 * weights.nbytes


def test_on_chip_memory_is_free():
  text = """HloModule m

ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0:T(128)} parameter(0)
  %fast = f32[100]{0:T(128)S(1)} negate(%p)
  %again = f32[100]{0:T(128)S(1)} negate(%fast)
  ROOT %out = f32[100]{0:T(128)} negate(%again)
}
"""
  assert traffic.num_bytes(hlo.parse(text)) == 400 + 400


def test_a_reduction_of_a_gpu_writes_its_result():
  text = """HloModule m

ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %start = f32[100]{0} all-reduce-start(%p), replica_groups={}, to_apply=%add
  ROOT %done = f32[100]{0} all-reduce-done(%start)
}
"""
  assert traffic.num_bytes(hlo.parse(text)) == 400 + 400


def test_a_slice_that_is_started_reads_no_more_than_it_takes():
  text = """HloModule m

ENTRY %main (p: f32[1000]) -> f32[100] {
  %p = f32[1000]{0:T(128)} parameter(0)
  %start = ((f32[1000]{0:T(128)}), f32[100]{0:T(128)S(1)}) slice-start(%p)
  ROOT %done = f32[100]{0:T(128)S(1)} slice-done(%start)
}
"""
  assert traffic.num_bytes(hlo.parse(text)) == 400


@pytest.mark.parametrize(
  ('name', 'called'), [('async', 'calls'), ('call', 'to_apply')]
)
def test_what_a_collective_moves_while_others_run_counts_once(name, called):
  text = f"""HloModule m

%wrapped (p.1: f32[100]) -> f32[100] {{
  %p.1 = f32[100] parameter(0)
  ROOT %all = f32[100] all-to-all(%p.1), replica_groups={{{{0,1}}}}
}}

ENTRY %main (p: f32[100]) -> f32[100] {{
  %p = f32[100] parameter(0)
  %start = ((f32[100]), f32[100], u32[]) {name}-start(%p), {called}=%wrapped
  ROOT %done = f32[100] {name}-done(%start)
}}
"""
  assert traffic.num_bytes(hlo.parse(text)) == 400 + 400
