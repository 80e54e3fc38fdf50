"""Where a variant runs."""

from optkit.engines.eager import Eager
from optkit.engines.inductor import Inductor

ENGINES = {Eager.name: Eager, Inductor.name: Inductor}

__all__ = ["ENGINES", "Eager", "Inductor"]
