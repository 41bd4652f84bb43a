"""Which operation of a program first made a NaN or an infinity that reached a result, and the line that it is written in.

The program is taken apart into its operations, its loops unrolled, and these are computed one after the other, each result
looked at. What is not finite on purpose, such as the −∞ of a mask, is no finding: with every bad value goes the operation
that made it of operands without, and reported is what arrives at a result.

(jax.experimental.checkify sees NaN only, also where it is masked afterwards, and stops there.)
"""

import dataclasses
import itertools
import pathlib
import site
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mimic_jax.runtime import checkpoint

PACKAGE = pathlib.Path(__file__).parents[1]
_OWN = {str(PACKAGE / 'training' / name) for name in ('nonfinite.py', 'debugging.py')}
_LIBRARIES = tuple({*site.getsitepackages(), *(sysconfig.get_path(k) for k in ('stdlib', 'purelib'))})
# Calls whose operands are, one by one, those of the program they hold.
_CALLS = {
  'remat2',
  'checkpoint',
  'custom_jvp_call',
  'custom_vjp_call',
  'closed_call',
  'core_call',
  'jit',
  'pjit',
}
_CONSTANT = 'a constant'


@dataclasses.dataclass(frozen=True)
class Origin:
  """What made numbers that are not finite.

  Attributes:
    order: of what is made, the earliest has the least.
    made: 'NaN' or 'infinity'.
    operation: JAX's name of it, 'input NAME' where they came in with that argument, or 'a constant'.
    result: type and shape of what it returned, such as 'float32[8,7]'; '' for what came in.
    where: 'file:line (function)', innermost of the user's program.
    backward: whether it belongs to the gradient.
    operands: of each operand that holds floats, what it is and the range of its numbers.
    because: what made the infinity that this one was made of.
  """

  order: int
  made: str
  operation: str
  result: str = ''
  where: str = ''
  backward: bool = False
  operands: tuple[str, ...] = ()
  because: 'Origin | None' = None

  def __str__(self) -> str:
    if not self.result:
      return f'{self.made} in {self.operation}'
    text = f'{self.made} first made by {self.operation}' + (f' at {self.where}' if self.where else '')
    return text + (', in the backward pass' if self.backward else '')


@dataclasses.dataclass(frozen=True)
class _Value:
  """An array; what of '-∞', '∞' and 'NaN' it has; what made that, where there is any."""

  array: Any
  has: frozenset[str] = frozenset()
  origin: Origin | None = None


def find(function: Callable[..., dict[str, jax.Array]], arguments: Mapping[str, Any]) -> dict[str, Origin]:
  """Computes a function and says of each result that is not finite what made it so.

  Args:
    function: of `arguments`' values, traceable by JAX; returns arrays by name.
    arguments: pytrees of arrays, named for what is said of them.

  Returns:
    Origins by the result's name, the earliest made first; {} when all results are finite.
  """
  with jax.disable_jit():  # unrolls the loops
    closed, shapes = jax.make_jaxpr(lambda a: function(*(a[k] for k in arguments)), return_shape=True)(
      dict(arguments)
    )
  order = itertools.count()
  flat = checkpoint.flatten(dict(arguments)).items()
  given = [_given(array, f'input {name}', order) for name, array in flat]
  results = zip(sorted(shapes), _evaluate(closed, given, order), strict=True)
  origins = {name: value.origin for name, value in results if value.origin}
  return dict(sorted(origins.items(), key=lambda item: (item[1].order, item[0])))


def _given(array: Any, name: str, order: Iterator[int]) -> _Value:
  """Returns an input or a constant as a value that is watched."""
  has = _has(array)
  return _Value(array, has, Origin(next(order), _made(has), name) if has else None)


def _evaluate(closed: Any, given: list[_Value], order: Iterator[int], backward: bool = False) -> list[_Value]:
  """Computes a program, letting go of every value after its last use."""
  jaxpr, constants = getattr(closed, 'jaxpr', closed), getattr(closed, 'consts', None) or ()
  values = dict(zip(jaxpr.constvars, (_given(c, _CONSTANT, order) for c in constants), strict=True))
  values |= zip(jaxpr.invars, given, strict=True)
  last = {v: k for k, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not _is_literal(v)}
  last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not _is_literal(v)}

  def read(atom: Any) -> _Value:
    return _given(atom.val, _CONSTANT, order) if _is_literal(atom) else values[atom]

  for k, eqn in enumerate(jaxpr.eqns):
    operands = [read(v) for v in eqn.invars]
    of_gradient = backward or 'transpose(' in str(eqn.source_info.name_stack)
    inner = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
    if eqn.primitive.name in _CALLS and inner is not None:
      computed = _evaluate(inner, operands, order, of_gradient)
    else:
      computed = _operate(eqn, operands, order, of_gradient)
    values |= zip(eqn.outvars, computed, strict=True)
    for v in (*eqn.invars, *eqn.outvars):
      if not _is_literal(v) and last.get(v, k) == k:
        values.pop(v, None)
  return [read(v) for v in jaxpr.outvars]


def _operate(eqn: Any, operands: list[_Value], order: Iterator[int], backward: bool) -> list[_Value]:
  with eqn.ctx.manager:
    found = eqn.primitive.bind(*(v.array for v in operands), **eqn.params)
  computed = []
  for array in found if eqn.primitive.multiple_results else [found]:
    has = _has(array)
    wanted = has & {'NaN'} or has  # beside a NaN an infinity doesn't matter
    there = [v for v in operands if v.has & wanted]
    if not has:
      origin = None
    elif wanted <= frozenset().union(*(v.has for v in there)):  # an operand has it from before
      origin = min((v.origin for v in there), key=lambda o: o.order)
    else:
      # A mask's −∞ is no news, unless a NaN was made of it.
      causes = [v.origin for v in operands if v.has and ('NaN' in has or v.origin.operation != _CONSTANT)]
      origin = Origin(
        next(order),
        _made(has),
        eqn.primitive.name,
        _type(array),
        _place(eqn),
        backward,
        tuple(_range(v.array) for v in operands if _is_float(v.array)),
        min(causes, key=lambda o: o.order, default=None),
      )
    computed.append(_Value(array, has, origin))
  return computed


def _is_literal(atom: Any) -> bool:
  return hasattr(atom, 'val')


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(x.dtype if hasattr(x, 'dtype') else np.result_type(x), jnp.inexact)


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
  return jnp.isfinite(x).all()


def _has(x: Any) -> frozenset[str]:
  if not _is_float(x) or _all_finite(x):
    return frozenset()
  there = {'-∞': x == -jnp.inf, '∞': x == jnp.inf, 'NaN': jnp.isnan(x)}
  return frozenset(name for name, where in there.items() if jnp.any(where))


def _made(has: frozenset[str]) -> str:
  return 'NaN' if 'NaN' in has else 'infinity'


def _range(x: Any) -> str:
  """Returns what an operand is, and the range of its finite numbers."""
  kind, x = _type(jnp.asarray(x)), np.asarray(x, np.float64)
  fine = x[np.isfinite(x)]
  return (
    kind
    + (f' from {fine.min():.4g} to {fine.max():.4g}' if fine.size else '')
    + (f', {x.size - fine.size} not finite' if fine.size < x.size else '')
  )


def _type(x: Any) -> str:
  return f'{x.dtype}[{",".join(map(str, x.shape))}]'


def _place(eqn: Any) -> str:
  """Returns where in the user's program an operation comes from."""
  for frame in eqn.source_info.traceback.frames if eqn.source_info.traceback else ():  # the innermost first
    path = pathlib.Path(frame.file_name)
    ours = path.is_relative_to(PACKAGE)
    if str(path) not in _OWN and (ours or not frame.file_name.startswith(_LIBRARIES)):
      shown = path.relative_to(PACKAGE.parent) if ours else path
      return f'{shown}:{frame.line_num} ({frame.function_name.rpartition(".")[2]})'
  return ''
