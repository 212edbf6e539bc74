"""Makes named tuples known to `jax.export`, however often this package is imported."""

from collections.abc import Callable
from typing import Any, TypeVar

from jax import export

NamedTupleType = TypeVar("NamedTupleType")


def exportable(name: str) -> Callable[[NamedTupleType], NamedTupleType]:
    """Registers a class of named tuples under its public name, which exported steps contain.

    JAX registers each name once per process. If this package was imported before, its class is
    used again: existing states are still recognized, and steps with them can be exported.
    """
    module, _, own_name = name.rpartition(".")

    def decorator(cls: Any) -> Any:
        cls.__module__ = module
        earlier: list[Any] = [
            other
            for other in tuple.__subclasses__()
            if (other.__module__, other.__qualname__) == (module, own_name) and other is not cls
        ]
        if not earlier:
            return export.register_namedtuple_serialization(cls, serialized_name=name)
        # With other fields, it belongs to another version of this package. JAX keeps that class.
        return next((other for other in earlier if other._fields == cls._fields), cls)

    return decorator
