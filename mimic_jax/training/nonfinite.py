"""Which operation of a program first made a NaN or an infinity that reached a result, and the line that it is written in.

The program is taken apart into its operations, its loops unrolled, and these are computed one after the other, each result
looked at. What is not finite on purpose, such as the −∞ of a mask, is no finding: with every bad value goes the operation
that made it of operands without, and reported is what arrives at a result.

(jax.experimental.checkify sees NaN only, also where it is masked afterwards, and stops there.)
"""

import dataclasses
import functools
import operator
import pathlib
import site
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mimic_jax.runtime import checkpoint

PACKAGE = pathlib.Path(__file__).parent
_OWN = {str(PACKAGE / name) for name in ('nonfinite.py', 'debugging.py')}
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
_NEGATIVE, _POSITIVE, _NAN = 1, 2, 4  # bits: what a value has among its numbers
_CONSTANT = 'a constant'


@dataclasses.dataclass(frozen=True)
class Origin:
  """What made numbers that are not finite.

  Attributes:
    made: 'NaN' or 'infinity'.
    operation: JAX's name of it, 'input NAME' where they came in with that argument, or 'a constant'.
    result: type and shape of what it returned, such as 'float32[8,7]'.
    where: 'file:line (function)', innermost of the user's program; '' for an input.
    library: 'file:line' of the library function that this line calls; '' where it calls JAX itself.
    backward: whether it belongs to the gradient.
    turn: (k, n) where this line does this n times in the program, once per block perhaps, and this is the k-th.
    operands: of each operand that holds floats, what it is and the range of its numbers.
    because: what made the infinity that this one was made of.
  """

  made: str
  operation: str
  result: str
  where: str = ''
  library: str = ''
  backward: bool = False
  turn: tuple[int, int] = (1, 1)
  operands: tuple[str, ...] = ()
  because: 'Origin | None' = None

  def __str__(self) -> str:
    text = f'{self.made} first made by {self.operation}'
    if self.operation.startswith('input ') or self.operation == _CONSTANT:
      text = f'{self.made} in {self.operation}'
    text += f' at {self.where}' if self.where else ''
    text += f', time {self.turn[0]} of {self.turn[1]}' if self.turn[1] > 1 else ''
    return text + (', in the backward pass' if self.backward else '')


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
  watch = _Watch()
  given = [watch.look(array, f'input {name}') for name, array in checkpoint.flatten(dict(arguments)).items()]
  results = watch.evaluate(closed, given)
  bad = sorted((v.root, name) for name, v in zip(sorted(shapes), results, strict=True) if v.has)
  origins = {root: watch.origin(root) for root, _ in bad}
  return {name: origins[root] for root, name in bad}


class _Value(NamedTuple):
  """array; has: bits of what is not finite in it; root: number of the event that made that, where there is any."""

  array: Any
  has: int = 0
  root: int = -1


class _Event(NamedTuple):
  """Where something not finite was made: by operation number `at`, or known by `name` alone."""

  has: int
  name: str = ''
  at: int = -1
  result: str = ''
  operands: tuple[str, ...] = ()
  because: int = -1


class _Done(NamedTuple):
  """An operation that was computed; backward: whether for the gradient."""

  eqn: Any
  backward: bool


class _Watch:
  """Computes operations and remembers what they make of bad values."""

  def __init__(self) -> None:
    self._events: list[_Event] = []
    self._done: list[_Done] = []

  def look(self, array: Any, name: str) -> _Value:
    """Returns an input or a constant as a value that is watched."""
    has = _bits(array)
    return _Value(array, has, self._event(_Event(has, name))) if has else _Value(array)

  def _event(self, event: _Event) -> int:
    self._events.append(event)
    return len(self._events) - 1

  def evaluate(self, closed: Any, given: list[_Value], backward: bool = False) -> list[_Value]:
    """Computes a program, letting go of every value after its last use."""
    jaxpr, constants = getattr(closed, 'jaxpr', closed), getattr(closed, 'consts', None) or ()
    values = dict(zip(jaxpr.constvars, (self.look(c, _CONSTANT) for c in constants), strict=True))
    values |= zip(jaxpr.invars, given, strict=True)
    last = {v: k for k, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not _is_literal(v)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not _is_literal(v)}

    def read(atom: Any) -> _Value:
      return self.look(atom.val, _CONSTANT) if _is_literal(atom) else values[atom]

    for k, eqn in enumerate(jaxpr.eqns):
      operands = [read(v) for v in eqn.invars]
      of_gradient = backward or 'transpose(' in str(eqn.source_info.name_stack)
      inner = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
      if eqn.primitive.name in _CALLS and inner is not None:
        computed = self.evaluate(inner, operands, of_gradient)
      else:
        computed = self._operate(eqn, operands, of_gradient)
      values |= zip(eqn.outvars, computed, strict=True)
      for v in (*eqn.invars, *eqn.outvars):
        if not _is_literal(v) and last.get(v, k) == k:
          values.pop(v, None)
    return [read(v) for v in jaxpr.outvars]

  def _operate(self, eqn: Any, operands: list[_Value], backward: bool) -> list[_Value]:
    with eqn.ctx.manager:
      found = eqn.primitive.bind(*(v.array for v in operands), **eqn.params)
    computed = []
    for array, variable in zip(
      found if eqn.primitive.multiple_results else [found], eqn.outvars, strict=True
    ):
      has = _bits(array)
      roots = _inherited(has, operands) if has else []
      root = min(roots, default=-1)
      if has and not roots:
        causes = [v.root for v in operands if v.has and self._is_cause(has, v.root)]
        of = tuple(_range(v.array) for v in operands if _is_float(v.array))
        event = _Event(has, '', len(self._done), _type(variable.aval), of, min(causes, default=-1))
        root = self._event(event)
      computed.append(_Value(array, has, root))
    self._done.append(_Done(eqn, backward))
    return computed

  def _is_cause(self, has: int, root: int) -> bool:
    # A mask's −∞ is no news, unless a NaN was made of it.
    return bool(has & _NAN) or self._events[root].name != _CONSTANT

  def origin(self, root: int) -> Origin:
    """Describes an event."""
    event = self._events[root]
    made = 'NaN' if event.has & _NAN else 'infinity'
    if event.at < 0:
      return Origin(made, event.name, '')
    this = self._done[event.at]
    same = [k for k, other in enumerate(self._done) if _alike(other, this)]
    return Origin(
      made,
      this.eqn.primitive.name,
      event.result,
      *_place(this.eqn),
      this.backward,
      (same.index(event.at) + 1, len(same)),
      event.operands,
      self.origin(event.because) if event.because >= 0 else None,
    )


def _inherited(has: int, operands: Sequence[_Value]) -> list[int]:
  """Returns the roots of the operands that a result with the bits `has` can have them from; [] where it made them itself."""
  wanted = _NAN if has & _NAN else has  # beside a NaN an infinity doesn't matter
  there = [v for v in operands if v.has & wanted]
  covered = functools.reduce(operator.or_, (v.has for v in there), 0)
  return [v.root for v in there] if covered & wanted == wanted else []


def _is_literal(atom: Any) -> bool:
  return hasattr(atom, 'val')


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(x.dtype if hasattr(x, 'dtype') else np.result_type(x), jnp.inexact)


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
  return jnp.isfinite(x).all()


def _bits(x: Any) -> int:
  """Returns what of −∞, ∞ and NaN an array has."""
  if not _is_float(x) or _all_finite(x):
    return 0
  there = {_NEGATIVE: x == -jnp.inf, _POSITIVE: x == jnp.inf, _NAN: jnp.isnan(x)}
  return sum(bit for bit, where in there.items() if jnp.any(where))


def _range(x: Any) -> str:
  """Returns what an operand is, and the range of its finite numbers."""
  x = jnp.asarray(x)
  fine = jnp.isfinite(x)
  bad = int(jnp.sum(~fine))
  low, high = (float(f(x, where=fine, initial=i)) for f, i in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf)))
  return (
    _type(x)
    + (f' from {low:.4g} to {high:.4g}' if low <= high else '')
    + (f', {bad} not finite' if bad else '')
  )


def _type(x: Any) -> str:
  return f'{x.dtype}[{",".join(map(str, x.shape))}]'


def _alike(a: _Done, b: _Done) -> bool:
  """Returns whether two operations are the same of one line."""
  return (
    a.eqn.primitive is b.eqn.primitive
    and a.backward == b.backward
    and _type(a.eqn.outvars[0].aval) == _type(b.eqn.outvars[0].aval)
    and _place(a.eqn) == _place(b.eqn)
  )


def _place(eqn: Any) -> tuple[str, str]:
  """Returns where in the user's program an operation comes from, and the library function there, if it isn't JAX's."""
  library = ''
  frames = eqn.source_info.traceback.frames if eqn.source_info.traceback else ()
  for frame in frames:  # the innermost first
    path = pathlib.Path(frame.file_name)
    if str(path) in _OWN:
      continue
    ours = path.is_relative_to(PACKAGE)
    shown = path.relative_to(PACKAGE.parent) if ours else path
    if ours or not frame.file_name.startswith(_LIBRARIES):
      return f'{shown}:{frame.line_num} ({frame.function_name.rpartition(".")[2]})', library
    if not library and not any(p in ('jax', 'jaxlib') for p in path.parts):
      library = f'{pathlib.Path(*path.parts[-3:])}:{frame.line_num}'
  return '', library
