"""Who is measured: one file a library, each with a function that builds an operation.

`build(case)` returns a function of `(x, scale, bias, mean, var)`, or None where the
library has no such operation. `mean` and `var` are the running statistics; the function
returns its output and the new ones, `(y, (mean, var))`, or `(y, ())` where there are
none. What a library wants in another form is brought to it inside the function; all of
that has the size of the features, and costs nothing beside `x`.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.shapes import Case

Function = Callable[..., tuple[Any, Any]]
Build = Callable[[Case], Function | None]


class Provider(NamedTuple):
    """A library that is measured.

    Attributes:
      name: what the command line calls it.
      module: the file in this folder that builds its operations.
      package: what must be importable.
      color: its color in figures.
      is_jax: whether its functions are traced by JAX.
      channels_first: whether its images are NCHW; it gets them so, free of charge.
      check_vma: whether its collectives pass the checks of shard_map.
    """

    name: str
    module: str
    package: str
    color: str
    is_jax: bool = True
    channels_first: bool = False
    check_vma: bool = True

    def is_installed(self) -> bool:
        """Return whether the library can be imported here."""
        spec = importlib.util.find_spec(self.package)
        # A folder that happens to have the name is found too, and has no origin.
        return spec is not None and spec.origin is not None

    def build(self, case: Case) -> Function | None:
        """Return the function of a case, None where the library has no such."""
        module = importlib.import_module(f"benchmarks.providers.{self.module}")
        return module.build(case)


SUBJECT = "jaxnorm"

# Okabe and Ito's palette, which stays apart for color-blind readers.
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("jaxnorm", "with_jaxnorm", "jaxnorm", "#222222"),
        Provider("linen", "with_linen", "flax", "#0072B2"),
        Provider("nnx", "with_nnx", "flax", "#56B4E9"),
        Provider("haiku", "with_haiku", "haiku", "#D55E00"),
        Provider(
            "equinox",
            "with_equinox",
            "equinox",
            "#009E73",
            channels_first=True,
            check_vma=False,
        ),
        Provider("jax.nn", "with_jax_nn", "jax", "#CC79A7"),
        Provider("torch", "with_torch", "torch", "#6E6E6E", is_jax=False),
    )
}


def installed_providers(names: tuple[str, ...] = ()) -> list[Provider]:
    """Return the providers that can be imported; `names` keeps some, empty all."""
    return [
        provider
        for provider in PROVIDERS.values()
        if (not names or provider.name in names) and provider.is_installed()
    ]
