"""Linear functions that are given with their transpose, and with a form for CPUs.

JAX transposes what it differentiates, operation by operation: a broadcast becomes a
sum, and slices that are added up become a concatenation. Each is right, and one of the
two is often slow. Here both directions are given, each in a plain form, which any
compiler takes well and which is differentiated further, and in one that XLA:CPU is fast
at. Which of them is taken is decided at lowering: one traced program is right on every
platform.

`jax.custom_derivatives.linear_call` is such a function without a batching rule.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Function = Callable[..., tuple[jax.Array, ...]]


class Forms(NamedTuple):
    """One function in two forms that compute the same."""

    plain: Function
    cpu: Function


def call(
    forward: Forms,
    transpose: Forms,
    operands: Sequence[jax.Array | None],
    args: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    """Return forward(*operands, *args), which is linear in `args`.

    `transpose` takes the operands and the cotangents of what `forward` returns, and
    returns those of `args`, of their shapes and dtypes. On a mesh of manual axes all
    `args` differ between devices wherever an operand does (see `devices.vary`).
    """
    leaves, structure = jax.tree.flatten(tuple(operands))

    def of_leaves(f: Function) -> Function:
        def flat(*values: Any) -> tuple[jax.Array, ...]:
            operands = jax.tree.unflatten(structure, values[: len(leaves)])
            return f(*operands, *values[len(leaves) :])

        return flat

    forward, transpose = (Forms(*map(of_leaves, f)) for f in (forward, transpose))
    return _bind(forward, transpose, leaves, args)


def _bind(
    forward: Forms,
    transpose: Forms,
    operands: Sequence[jax.Array],
    args: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    types = jax.make_jaxpr(forward.plain)(*operands, *args).out_avals
    out = _linear.bind(
        *operands,
        *args,
        number=len(operands),
        forward=forward,
        transpose=transpose,
        out_types=tuple(types),
    )
    return tuple(out)


def _differentiate(primals: Any, tangents: Any, **params: Any) -> Any:
    """Apply it to the tangents of `args`, and differentiate it in the operands."""
    number, plain = params["number"], params["forward"].plain
    out = _linear.bind(*primals, **params)
    t_out = [ad.Zero(jax.typeof(v).to_tangent_aval()) for v in out]
    if not all(isinstance(t, ad.Zero) for t in tangents[number:]):
        t_args = map(ad.instantiate_zeros, tangents[number:])
        t_out = _linear.bind(*primals[:number], *t_args, **params)
    moving = [i for i in range(number) if not isinstance(tangents[i], ad.Zero)]
    if moving:

        def at(*moved: jax.Array) -> tuple[jax.Array, ...]:
            values = dict(enumerate(primals)) | dict(zip(moving, moved, strict=True))
            return plain(*values.values())

        at_values, along = (tuple(v[i] for i in moving) for v in (primals, tangents))
        _, more = jax.jvp(at, at_values, along)
        t_out = list(map(ad.add_tangents, t_out, more))
    return out, t_out


def _transpose(cotangents: Any, *values: Any, **params: Any) -> list[Any]:
    number = params["number"]
    operands, args = values[:number], values[number:]
    out = _linear.bind(
        *operands,
        *map(ad.instantiate_zeros, cotangents),
        number=number,
        forward=params["transpose"],
        transpose=params["forward"],
        out_types=tuple(arg.aval for arg in args),
    )
    return [None] * number + list(out)


def _batch(axis: Any, values: Any, dims: Any, **params: Any) -> Any:
    """Batch all that is linear, and of the operands those that are batched."""
    out_types, number = params["out_types"], params["number"]
    if all(d is None for d in dims):
        return _linear.bind(*values, **params), [None] * len(out_types)

    def to_front(value: jax.Array, dim: int | None) -> jax.Array:
        return batching.bdim_at_front(value, dim, axis.size)

    def batched(f: Function, linear: int) -> Function:
        mapped = [d if d is None else 0 for d in dims[:number]]
        in_axes = (*mapped, *[0] * linear)
        return jax.vmap(f, in_axes, axis_size=axis.size, spmd_axis_name=axis.spmd_name)

    pairs = list(zip(values, dims, strict=True))
    operands = [v if d is None else to_front(v, d) for v, d in pairs[:number]]
    args = [to_front(v, d) for v, d in pairs[number:]]
    forward = Forms(*(batched(f, len(args)) for f in params["forward"]))
    transpose = Forms(*(batched(f, len(out_types)) for f in params["transpose"]))
    return _bind(forward, transpose, operands, args), [0] * len(out_types)


def _plain(*values: jax.Array, forward: Forms, **_: Any) -> tuple[jax.Array, ...]:
    return forward.plain(*values)


def _cpu(*values: jax.Array, forward: Forms, **_: Any) -> tuple[jax.Array, ...]:
    return forward.cpu(*values)


_linear = Primitive("linear_with_transpose")
_linear.multiple_results = True
_linear.def_impl(_plain)
_linear.def_abstract_eval(lambda *_, out_types, **__: out_types)
ad.primitive_jvps[_linear] = _differentiate
ad.primitive_transposes[_linear] = _transpose
batching.fancy_primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_plain))
mlir.register_lowering(_linear, mlir.lower_fun(_cpu), platform="cpu")
