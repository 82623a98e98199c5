"""The linen modules: what they refuse, and that errors say where."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen

import jaxnorm.linen as ours
from jaxnorm.flax_shared import inputs
from tests.flax_modules import EVALUATING, KEY, TRAINING, sample

MUTABLE = {"mutable": ["batch_stats"]}


class Named(linen.Module):
    """Gives a norm a path."""

    norm: linen.Module

    @linen.compact
    def __call__(self, x, **kwargs):
        return self.norm(x, **kwargs)


def run(module, x, variables=None, **kwargs):
    model = Named(module)
    if variables is None:
        variables = model.init(KEY, sample((4, 6)))
    return model.apply(variables, x, **kwargs)


@pytest.mark.parametrize(
    ("module", "x", "kwargs", "error", "text"),
    [
        (
            ours.BatchNorm(**TRAINING),
            sample((4, 6)),
            {},
            ValueError,
            r"BatchNorm at 'norm': training updates the running statistics.*pass "
            r"mutable=\['batch_stats'\]",
        ),
        (
            ours.BatchNorm(**EVALUATING),
            sample((4, 6)),
            {"variables": {"params": {"norm": {"scale": jnp.ones(6)}}}},
            ValueError,
            "BatchNorm at 'norm': use_running_average=True needs running statistics",
        ),
        (
            ours.BatchNorm(use_scale=False, use_bias=False, **EVALUATING),
            sample((4, 6)),
            {"variables": {"batch_stats": {"norm": {"mean": jnp.ones(6)}}}},
            ValueError,
            "BatchNorm at 'norm': use_running_average=True needs running statistics",
        ),
        (
            ours.BatchNorm(**TRAINING),
            sample((6, 6)),
            {"mask": jnp.arange(6) < 4, **MUTABLE},
            ValueError,
            r"BatchNorm at 'norm': mask with fewer axes than x must not fit both .*"
            r"reshape to \(6, 1\) or to \(1, 6\)",
        ),
        (
            ours.BatchNorm(**EVALUATING),
            sample((4, 5)),
            {},
            ValueError,
            r"BatchNorm at 'norm': the running statistics must have shape \(5,\).*"
            "another layer",
        ),
        (
            ours.LayerNorm(),
            sample((4, 5)),
            {},
            linen.module.errors.ScopeParamShapeError,
            '"scale" in "/norm"',
        ),
        (
            ours.BatchNorm(**EVALUATING),
            jnp.ones((4, 6), int),
            {},
            TypeError,
            "BatchNorm at 'norm': x must have a floating-point or complex dtype",
        ),
        (
            ours.RMSNorm(),
            sample((4, 6)),
            {"mask": jnp.ones((3, 6))},
            ValueError,
            "RMSNorm at 'norm': mask must broadcast to x",
        ),
        (
            ours.BatchNorm(momentum=1.5, **TRAINING),
            sample((4, 6)),
            MUTABLE,
            ValueError,
            r"BatchNorm at 'norm': momentum must lie in \[0, 1\].* momentum=1\.5",
        ),
        (
            ours.BatchNorm(axis_name="no", **TRAINING),
            sample((4, 6)),
            MUTABLE,
            ValueError,
            "BatchNorm at 'norm': axis_name must be bound",
        ),
        (
            ours.BatchNorm(**EVALUATING),
            sample((4, 6)),
            {"scale": jnp.ones(6)},
            ValueError,
            "BatchNorm at 'norm': a scale given at call time takes the place.*"
            "use_scale=False",
        ),
    ],
)
def test_errors_name_the_module_and_its_path(module, x, kwargs, error, text):
    with pytest.raises(error, match=f"(?s){text}"):
        run(module, x, **kwargs)


@pytest.mark.parametrize(
    ("norm", "kwargs"),
    [(ours.SpectralNorm, {"update_stats": True}), (ours.WeightNorm, {})],
)
def test_the_epsilon_of_kernels(norm, kwargs):
    module = norm(linen.Dense(3), epsilon=0.0)
    with pytest.raises(ValueError, match=r"epsilon must be positive.*value is 1e-12"):
        module.init(KEY, sample((4, 6)), **kwargs)


def test_the_flag_of_spectral_norm():
    module = ours.SpectralNorm(linen.Dense(3))
    text = "update_stats='yes'; it says whether the new u and sigma are kept"
    with pytest.raises(TypeError, match=text):
        module.init(KEY, sample((4, 6)), update_stats="yes")


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (ours.BatchNorm(axis=3, **TRAINING), "BatchNorm: axis must lie in"),
        (ours.BatchNorm(axis=(1, 1), **TRAINING), "axis must name each axis once"),
        (ours.BatchNorm(ddof=2, **TRAINING), "BatchNorm: ddof must be 0"),
        (ours.LayerNorm(epsilon=0.0), "LayerNorm: epsilon must be positive"),
        (ours.LayerNorm(reduction_axes=2), "reduction_axes must lie in"),
        (ours.GroupNorm(4), "GroupNorm: num_groups must be positive and divide"),
        (ours.GroupNorm(None, 4), "group_size must be a whole number that divides the"),
        (ours.GroupNorm(None, 1.5), "Received group_size=1.5 for 6 channels"),
        (ours.GroupNorm(None, 3.0), "Received group_size=3.0 for 6 channels"),
        (ours.GroupNorm(None, "3"), "Received group_size=3 for 6 channels"),
        (ours.GroupNorm(2, 3), "either num_groups or group_size must be given"),
        (ours.GroupNorm(2, reduction_axes=0), "must include the feature axis 1"),
        (ours.InstanceNorm(feature_axes=0), "cannot include the leading dimension"),
        (ours.BatchNorm(), "use_running_average"),
    ],
)
def test_wrong_arguments(module, text):
    with pytest.raises(ValueError, match=text):
        module.init(KEY, sample((4, 6)))


def test_an_empty_axis_has_no_statistic():
    norm = ours.LayerNorm(reduction_axes=0, feature_axes=-1)
    text = r"LayerNorm: the reduced axes \(0,\) must hold at least one element"
    with pytest.raises(ValueError, match=text):
        norm.init(KEY, jnp.ones((0, 6)))


def test_what_jax_itself_raises_is_not_renamed():
    norm, x = ours.BatchNorm(use_running_average=False), sample()
    variables = norm.init(KEY, x)

    def run(decay):  # bool(...) of what is traced
        with inputs.errors_named("BatchNorm"):
            bool(decay)
        return norm.apply(variables, x, mutable=["batch_stats"])

    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(run)(0.9)
    cause = ValueError("Received incompatible devices: 0 and 1")
    with pytest.raises(ValueError, match=r"^Received incompatible") as raised:
        with inputs.errors_named("BatchNorm"):
            raise cause
    assert raised.value is cause


def test_decay_is_a_number():
    norm, x = ours.BatchNorm(use_running_average=False, decay="0.9"), sample()
    text = r"BatchNorm: decay must be one number in \[0, 1\].*Received decay='0.9'"
    with pytest.raises(TypeError, match=text):
        norm.init_with_output(KEY, x)


def test_a_number_of_features_is_no_flag():
    text = "use_running_average must be True, .* Received use_running_average=8; a mask"
    with pytest.raises(TypeError, match=text):
        ours.BatchNorm(8).init(KEY, sample())
