"""Mistakes at the set-up of an integration: refused at once, with the mend."""

import pytest
from aiohttp import web
from quart import Quart
from starlette.applications import Starlette

from deferred import Supervisor
from deferred.integrations import aiohttp
from deferred.integrations.asgi import DeferredMiddleware
from deferred.integrations.litestar import DeferredPlugin
from deferred.integrations.quart import DeferredQuart

SETUPS = {
    "asgi": lambda supervisor: DeferredMiddleware(Starlette(), supervisor),
    "litestar": DeferredPlugin,
    "quart": lambda supervisor: DeferredQuart(Quart("mistaken"), supervisor),
    "aiohttp": lambda supervisor: aiohttp.setup(web.Application(), supervisor),
}


@pytest.mark.parametrize("wrong", ["supervisor", Supervisor])
@pytest.mark.parametrize("framework", SETUPS)
def test_what_is_no_supervisor_is_refused(framework, wrong):
    """A string or the class itself is a TypeError where it is given, not an AttributeError in a request."""
    with pytest.raises(TypeError, match=r"must be a Supervisor, such as `Supervisor\(drain_timeout=10\)`"):
        SETUPS[framework](wrong)


def test_a_supervisor_in_the_place_of_the_app_is_refused():
    """The app comes first, and the message shows the order."""
    with pytest.raises(TypeError, match=r"`DeferredMiddleware\(app, supervisor\)`"):
        DeferredMiddleware(Supervisor())


@pytest.mark.parametrize("wrong", ["app", Supervisor()])
def test_what_is_no_app_of_quart_is_refused(wrong):
    """The supervisor alone, say: the message shows the order."""
    with pytest.raises(TypeError, match=r"`DeferredQuart\(app, supervisor\)`"):
        DeferredQuart(wrong)


@pytest.mark.parametrize("wrong", [None, web.Application])
def test_what_is_no_application_of_aiohttp_is_refused(wrong):
    """The class instead of its instance is a TypeError with a name for what is wanted."""
    with pytest.raises(TypeError, match=r"takes an aiohttp\.web\.Application, not"):
        aiohttp.setup(wrong)


def test_an_application_that_was_added_to_another_is_refused():
    """It is frozen then: the message names both ways out, and nothing of it is set up by half."""
    outer, inner = web.Application(), web.Application()
    outer.add_subapp("/inner", inner)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="before it is run, or added to another application"):
            aiohttp.setup(inner)
    aiohttp.setup(outer)


@pytest.mark.parametrize("name", ["my ctx", "", "class"])
def test_a_dependency_that_no_parameter_can_have_is_refused(name):
    """Litestar injects by the name of a parameter, which is an identifier and no keyword."""
    with pytest.raises(ValueError, match="a name that a handler's parameter can have"):
        DeferredPlugin(dependency=name)
