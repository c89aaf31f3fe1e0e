"""The allow-list of durable work: what may be registered, and what is found."""

import functools

import pytest

from deferred import PayloadError, UnknownTaskError
from deferred._options import TaskOptions
from deferred._registry import Registry

OPTIONS = TaskOptions()


async def send(to: str, copies: int = 1): ...  # noqa: D103  # a signature


async def other(to: str): ...  # noqa: D103  # same


@pytest.fixture
def registry():
    """Return an empty registry."""
    return Registry()


def add(registry, func, name="send", **more):
    """Register `func` with the defaults."""
    return registry.add(func, name, OPTIONS, queue=more.pop("queue", "deferred"), **more)


def test_finds_by_function_and_by_name(registry):
    """A registered function is found by itself and by its name."""
    task = add(registry, send)
    assert registry.of(send) is registry.of("send") is registry.named("send") is task
    assert registry.knows(send)
    assert not registry.knows(other)
    assert registry.named("unheard-of") is None


def test_a_method_is_found_again(registry):
    """A bound method, which is a new object at each look, is one function."""

    class Mailer:
        async def send(self, to: str): ...

    mailer = Mailer()
    assert (
        registry.of(mailer.send) is add(registry, mailer.send)
        if registry.knows(mailer.send)
        else add(registry, mailer.send)
    )
    assert registry.knows(mailer.send)


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        (other, UnknownTaskError, r"other is not registered.*@supervisor.task\(name='other'\)"),
        ("unheard-of", UnknownTaskError, "no task is named 'unheard-of': there are send"),
        (lambda: None, TypeError, "is a lambda"),
        (functools.partial(send, "x"), UnknownTaskError, "not registered"),
        (3, TypeError, "takes a function"),
    ],
)
def test_refuses_what_is_not_registered(registry, what, error, says):
    """Lambdas, closures and unregistered functions are refused at the call, with the mend. G14."""
    add(registry, send)
    with pytest.raises(error, match=says):
        registry.of(what)


def test_refuses_a_closure(registry):
    """A function that holds a variable of another is refused by that name."""
    held = object()

    async def task():
        return held

    with pytest.raises(TypeError, match="is a closure"):
        registry.of(task)


def test_an_empty_registry_says_so(registry):
    """The error of an unknown name lists what there is."""
    with pytest.raises(UnknownTaskError, match="none is registered"):
        registry.of("send")


def test_refuses_what_cannot_be_hashed(registry):
    """A callable that cannot be hashed was never registered."""

    class Unhashable:
        __hash__ = None

        def __eq__(self, _other):
            return False

        async def __call__(self): ...

    assert not registry.knows(Unhashable())


def test_a_name_belongs_to_one_function(registry):
    """A second function of one name is refused; the same one, loaded again, replaces itself."""
    add(registry, send)
    add(registry, send)
    with pytest.raises(ValueError, match=r"'send' is taken by .*test_registry\.send"):
        add(registry, other)
    scope = {"__name__": send.__module__}
    exec("async def send(to: str, copies: int = 2): ...", scope)
    again = add(registry, scope["send"])
    assert registry.of("send") is again


@pytest.mark.parametrize("name", ["", "a\0", "a\nb", "x" * 201])
def test_refuses_names_that_no_store_can_hold(registry, name):
    """A name is printable and short. G16."""
    with pytest.raises(ValueError, match="printable"):
        add(registry, send, name)
    with pytest.raises(ValueError, match="queue"):
        add(registry, send, queue=name)


@pytest.mark.parametrize(("name", "version"), [(3, 1), (None, 1), ("send", 0), ("send", True), ("send", "2")])
def test_refuses_other_types(registry, name, version):
    """A name is a text, a version a whole number from 1."""
    with pytest.raises((TypeError, ValueError), match=r"name|version"):
        add(registry, send, name, version=version)


def test_queues_are_those_of_its_tasks(registry):
    """A worker serves the queues that its tasks use."""
    add(registry, send, queue="mail")
    add(registry, other, "other", queue="deferred")
    assert registry.queues == ("deferred", "mail")
    assert len(registry) == 2


def test_old_arguments_are_upgraded(registry):
    """What older code stored is turned into what this code takes; newer arguments are recognised. D28."""

    def upgrade(version, arguments):
        assert version == 1
        return {"to": arguments["address"], "copies": 2}

    task = add(registry, send, version=2, upgrade=upgrade)
    assert task.headers() == {"deferred-version": "2"}
    assert task.read(b'{"address":"a"}', {}) == (("a", 2), {})
    assert task.read(b'{"to":"a"}', task.headers()) == (("a",), {})
    assert task.is_newer({"deferred-version": "3"})
    assert task.is_newer({"deferred-version": "9" * 5000})  # more digits than Python turns into a number
    assert not task.is_newer({"deferred-version": "2"})
    assert not task.is_newer({"deferred-version": "?"})
    with pytest.raises(PayloadError, match="upgrade from version 1 failed: 'address'"):
        task.read(b"{}", {})


def test_old_arguments_without_an_upgrade_have_to_fit(registry):
    """Without an upgrade, older arguments are taken if they fit, else refused. D28."""
    task = add(registry, send, version=2)
    assert task.read(b'{"to":"a"}', {}) == (("a",), {})
    with pytest.raises(PayloadError):
        task.read(b'{"address":"a"}', {})
