"""Linear functions with a hand-written transpose, and with forms for platforms.

JAX transposes a program operation by operation: a broadcast becomes a sum, and a sum of
slices becomes a concatenation. That is right, but often one of the two directions is
slow. Here both directions are given, each in several forms: a plain one, which every
compiler handles well and which is differentiated further, and others, such as one that
is fast on XLA:CPU. The form is chosen at lowering, by the platform and the number of
devices that the compiler may spread arrays over, so one traced program is right on all
of them.

Where arrays lie on Explicit mesh axes, the plain form says how results are sharded, and
cotangents are sharded as what they belong to. At lowering a form is computed on Auto
axes, so the others need not say anything of that.

`jax.custom_derivatives.linear_call` takes a transpose as well, but has neither a second
form nor a batching rule. So this is a primitive of our own, made of the public parts of
`jax.extend.core` and `jax.interpreters`: `ad`, `batching` and `mlir`. A new release of
JAX that changes those shows in tests/test_linear.py first.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnorm import sharding

Function = Callable[..., tuple[jax.Array, ...]]


class Forms(NamedTuple):
    """One function in several forms, any of which will do.

    Platforms without a form of their own take the plain one. `spread(n)`, if given,
    returns the forms for programs in which arrays may be spread over n devices.
    """

    plain: Function
    cpu: Function | None = None
    gpu: Function | None = None
    tpu: Function | None = None
    spread: Callable[[int], "Forms"] | None = None

    def map(self, change: Callable[[Function], Function]) -> "Forms":
        """Return all forms changed."""
        plain, *own, spread = self
        cpu, gpu, tpu = (None if f is None else change(f) for f in own)
        if_spread = None if spread is None else lambda n: spread(n).map(change)
        return Forms(change(plain), cpu, gpu, tpu, if_spread)

    def choose(self, platform: str | None, devices: int) -> Function:
        """Return the form for programs of so many devices of a platform."""
        if self.spread is not None and devices > 1:
            return self.spread(devices).choose(platform, 1)
        own = {"cpu": self.cpu, "gpu": self.gpu, "tpu": self.tpu, None: None}
        return own[platform] or self.plain


def call(
    forward: Forms,
    transpose: Forms,
    operands: Sequence[jax.Array | None],
    args: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    """Return forward(*operands, *args), which is linear in `args`.

    `transpose` takes the operands and the cotangents of what `forward` returns, and
    returns those of `args`, of their shapes and dtypes. On a mesh of manual axes all
    `args` differ between devices wherever an operand does (see `sharding.vary`).
    """
    leaves, structure = jax.tree.flatten(tuple(operands))
    count = len(leaves)
    if count < len(operands):  # some are None

        def of_leaves(f: Function) -> Function:
            def flat(*values: Any) -> tuple[jax.Array, ...]:
                operands = jax.tree.unflatten(structure, values[:count])
                return f(*operands, *values[count:])

            return flat

        forward, transpose = (f.map(of_leaves) for f in (forward, transpose))
    params = {"forward": forward, "transpose": transpose, "operands": count}
    return tuple(_linear.bind(*leaves, *args, **params))


def choose(forms: Forms, operands: Sequence[jax.Array | None]) -> tuple[jax.Array, ...]:
    """Return what one of the forms makes of the operands.

    None of the arguments is a linear one, so nothing is ever transposed.
    `lax.platform_dependent` does the same, but fails to be lowered in a `shard_map`
    that is mapped over with `spmd_axis_name`.
    """
    return call(forms, forms, operands, ())


def _types(*types: Any, forward: Forms, **_: Any) -> Any:
    def on_one_mesh(*values: jax.Array) -> list[jax.Array]:
        return [sharding.on_mesh_of(v, *values) for v in forward.plain(*values)]

    return jax.make_jaxpr(on_one_mesh)(*types).out_avals


def _differentiate(primals: Any, tangents: Any, **params: Any) -> Any:
    """Apply it to the tangents of `args`, and differentiate it in the operands."""
    count, plain = params["operands"], params["forward"].plain
    out = _linear.bind(*primals, **params)
    t_out = [ad.Zero(jax.typeof(v).to_tangent_aval()) for v in out]
    if not all(isinstance(t, ad.Zero) for t in tangents[count:]):
        t_args = map(ad.instantiate_zeros, tangents[count:])
        t_out = _linear.bind(*primals[:count], *t_args, **params)
    moving = [i for i in range(count) if not isinstance(tangents[i], ad.Zero)]
    if moving:

        def at(*moved: jax.Array) -> tuple[jax.Array, ...]:
            values = list(primals)
            for i, value in zip(moving, moved, strict=True):
                values[i] = value
            return plain(*values)

        at_values, along = (tuple(v[i] for i in moving) for v in (primals, tangents))
        _, more = jax.jvp(at, at_values, along)
        t_out = list(map(ad.add_tangents, t_out, more))
    return out, t_out


def _transpose(cotangents: Any, *values: Any, **params: Any) -> list[Any]:
    """Return the cotangents of all `args`; JAX drops those of constants."""
    count = params["operands"]
    swapped = {"forward": params["transpose"], "transpose": params["forward"]}
    cotangents = map(ad.instantiate_zeros, cotangents)
    out = _linear.bind(*values[:count], *cotangents, operands=count, **swapped)
    return [None] * count + [
        sharding.as_type(ct, arg.aval) if ad.is_undefined_primal(arg) else None
        for ct, arg in zip(out, values[count:], strict=True)
    ]


def _batch(axis: Any, values: Any, dims: Any, **params: Any) -> Any:
    """Batch all that is linear, and of the operands those that are batched."""
    if all(d is None for d in dims):
        out = _linear.bind(*values, **params)
        return out, [None] * len(out)
    count = params["operands"]
    mapped = tuple(d if d is None else 0 for d in dims[:count])

    def batched(f: Function) -> Function:
        def many(*values: Any) -> tuple[jax.Array, ...]:
            in_axes = (*mapped, *[0] * (len(values) - count))
            size, name = axis.size, axis.spmd_name
            out = jax.vmap(f, in_axes, axis_size=size, spmd_axis_name=name)(*values)
            # What depends on no mapped value is spread over devices as all others.
            like = values[in_axes.index(0)]
            return tuple(sharding.shard_axis_like(v, like, 0) for v in out)

        return many

    pairs = list(zip(values, dims, strict=True))
    values = [
        v if d is None else batching.bdim_at_front(v, d, axis.size) for v, d in pairs
    ]
    like = next(v for v, d in zip(values, dims, strict=True) if d is not None)

    def repeat(v: Any) -> Any:
        each = batching.bdim_at_front(v, None, axis.size)
        return sharding.shard_axis_like(each, like, 0)

    values = [
        repeat(v) if i >= count and d is None else v
        for i, (v, d) in enumerate(zip(values, dims, strict=True))
    ]
    forms = {key: params[key].map(batched) for key in ("forward", "transpose")}
    out = _linear.bind(*values, operands=count, **forms)
    return out, [0] * len(out)


def _lower(
    ctx: mlir.LoweringRuleContext,
    *values: Any,
    forward: Forms,
    platform: str | None,
    **_: Any,
) -> Any:
    form = forward.choose(platform, _number_of_devices(ctx))
    return mlir.lower_fun(sharding.on_auto_axes(form, ctx.avals_out))(ctx, *values)


def _number_of_devices(ctx: mlir.LoweringRuleContext) -> int:
    """Return how many devices the compiler may spread an array over."""
    context = ctx.module_context.axis_context
    if not isinstance(context, mlir.SPMDAxisContext):
        return context.num_devices
    # In shard_map or pmap: over the axes of the mesh that are not manual.
    sizes = context.mesh.shape.items()
    return math.prod(n for name, n in sizes if name not in context.manual_axes)


def _evaluate(*values: jax.Array, forward: Forms, **_: Any) -> tuple[jax.Array, ...]:
    return forward.plain(*values)


_linear = Primitive("linear_in_several_forms")
_linear.multiple_results = True
_linear.def_impl(_evaluate)
_linear.def_abstract_eval(_types)
ad.primitive_jvps[_linear] = _differentiate
ad.primitive_transposes[_linear] = _transpose
batching.fancy_primitive_batchers[_linear] = _batch
for _platform in (None, "cpu", "gpu", "tpu"):  # None: any other
    mlir.register_lowering(
        _linear, partial(_lower, platform=_platform), platform=_platform
    )
