"""Find an application's charging routes, including those of mounted and included applications."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from weakref import WeakSet

from fastapi import routing

from credit_mongo.errors import ConfigurationError

__all__ = ["CHARGES", "charged_endpoints", "dependencies_of", "mounted_in", "routes_of"]

CHARGES: Final[WeakSet[Callable[..., Any]]] = WeakSet()
"""The dependencies that `Charge` and `Hold` have made."""


def charged_endpoints(application: Any) -> frozenset[int]:
    """``id(endpoint)`` of each endpoint that charges.

    Raises ConfigurationError for a route that charges twice.
    """
    found = set()
    for each in (application, *mounted_in(application)):
        for route in routes_of(each):
            charges = CHARGES.intersection(dependencies_of(route))
            if len(charges) > 1:
                raise ConfigurationError(
                    "Charge",
                    f"is used {len(charges)} times by the route {route.path} (Hold counts too), "
                    "and one could fail after another succeeded: use one whose amount or variables "
                    "cover all",
                )
            if charges:
                found.add(id(route.endpoint))
    return frozenset(found)


def routes_of(application: Any) -> Iterator[Any]:
    """The routes of an application that have dependencies, with their paths after inclusion."""
    for route in _all_routes(getattr(application, "routes", ())):
        if getattr(route, "dependant", None) is not None:
            yield route


def mounted_in(application: Any) -> Iterator[Any]:
    """The applications mounted in this one, directly or not, even behind middleware."""
    seen = {id(application)}
    waiting = [application]
    while waiting:
        for route in _all_routes(getattr(waiting.pop(), "routes", ())):
            if getattr(route, "dependant", None) is not None:
                continue
            inner = getattr(route, "app", None)
            while inner is not None and not hasattr(inner, "routes"):
                inner = getattr(inner, "app", None)
            if inner is not None and id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
                yield inner


def _all_routes(routes: Sequence[Any]) -> Iterator[Any]:
    # Older FastAPI versions lack this function and copy included routes into the application.
    contexts = getattr(routing, "iter_route_contexts", iter)
    yield from contexts(routes)


def dependencies_of(route: Any) -> set[Callable[..., Any]]:
    """The dependencies of a route, direct and indirect."""
    found: set[Callable[..., Any]] = set()
    waiting = [route.dependant]
    while waiting:
        dependant = waiting.pop()
        found.update(each.call for each in dependant.dependencies)
        waiting += dependant.dependencies
    return found
