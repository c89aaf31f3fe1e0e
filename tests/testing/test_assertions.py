"""What can be said of deferred work, and what a test is told when it is not so."""

import functools
import threading
from unittest.mock import ANY, AsyncMock

import pytest

from deferred import Supervisor, TaskDeferred, TaskFailed, TaskState, TaskSucceeded, current_context, defer, sequential
from deferred.testing import Kit, Recorder, create_context
from tests.testing.support import boom, fine, send_mail


@pytest.fixture
async def ctx():
    """Give a context that captures."""
    return create_context("capture")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("runner@example.org",), {}),
        ((), {"to": "runner@example.org"}),
        (("runner@example.org", "hello"), {}),
        (("runner@example.org",), {"subject": "hello", "urgent": False}),
        ((ANY,), {}),
        ((), {"to": ANY, "subject": ANY, "urgent": ANY}),
    ],
)
async def test_arguments_are_compared_as_the_function_receives_them(ctx, args, kwargs):
    """By position or keyword, with defaults or without, with ANY in any place; none given: any."""
    handle = ctx.defer(send_mail, "runner@example.org")
    assert ctx.kit.assert_deferred(send_mail, *args, **kwargs) is handle
    assert ctx.kit.assert_deferred("send_mail", *args, **kwargs) is handle


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("other@example.org",), {}),
        (("runner@example.org", "bye"), {}),
        ((ANY,), {"urgent": True}),
    ],
)
async def test_other_arguments_do_not_match(ctx, args, kwargs):
    """One other argument is enough."""
    ctx.defer(send_mail, "runner@example.org")
    with pytest.raises(AssertionError, match="was not deferred"):
        ctx.kit.assert_deferred(send_mail, *args, **kwargs)
    ctx.kit.assert_not_deferred(send_mail, *args, **kwargs)


class Mailer:
    """What has a method to defer."""

    async def send(self, to):
        """Send nothing."""


async def test_a_method_is_asked_for_by_its_object_or_its_class(ctx):
    """By its class the object is the first argument, as Python has it."""
    mailer, other = Mailer(), Mailer()
    handle = ctx.defer(mailer.send, "runner@example.org")
    for args in [(), (mailer, "runner@example.org"), (ANY, ANY), (mailer, ANY)]:
        assert ctx.kit.assert_deferred(Mailer.send, *args) is handle
    assert ctx.kit.assert_deferred(mailer.send, "runner@example.org") is handle
    ctx.kit.assert_not_deferred(Mailer.send, other, ANY)
    ctx.kit.assert_not_deferred(other.send)
    with pytest.raises(TypeError, match="missing a required argument: 'to'"):
        ctx.kit.assert_deferred(Mailer.send, "runner@example.org")


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "mend"),
    [
        (
            send_mail,
            (ANY, ANY, ANY, ANY),
            {},
            r"send_mail\(.*\) could never be deferred: too many positional arguments",
        ),
        (send_mail, (), {"nonsense": 1}, "could never be deferred: .* (it takes (to"),
        (functools.partial(send_mail, "a"), ("b", "c", "d"), {}, "could never be deferred: too many"),
        (7, (), {}, "by its function, or by the name of its task, not by 7"),
        (None, (1,), {}, "not by None"),
    ],
)
async def test_what_nothing_could_match_is_refused(ctx, func, args, kwargs, mend):
    """A mistyped question is an error, and no assertion that cannot fail."""
    ctx.defer(send_mail, "runner@example.org")
    kit = ctx.kit
    for ask in (kit.assert_deferred, kit.assert_not_deferred, functools.partial(kit.assert_deferred_times, 0)):
        with pytest.raises(TypeError, match=mend.replace("(it takes (", r"\(it takes \(")):
            ask(func, *args, **kwargs)


async def test_a_function_that_was_called_is_refused(ctx):
    """The coroutine is closed, and the message says how to ask."""
    coroutine = send_mail("runner@example.org")
    with pytest.raises(TypeError, match="write `send_mail` without calling it, then its arguments"):
        ctx.kit.assert_not_deferred(coroutine)
    assert coroutine.cr_frame is None


async def test_a_builtin_without_a_signature_is_asked_for_all_the_same(ctx):
    """Of `dict.update` Python does not know what it takes."""
    stored = {}
    ctx.defer(stored.update, {"a": 1})
    ctx.kit.assert_deferred(stored.update, {"a": 1})
    ctx.kit.assert_not_deferred(stored.update, {"a": 2})


async def test_what_partials_bind_are_arguments(ctx):
    """On either side."""
    ctx.defer(functools.partial(send_mail, "a@example.org", urgent=True), "hi")
    ctx.kit.assert_deferred(send_mail, "a@example.org", "hi", urgent=True)
    ctx.kit.assert_deferred(functools.partial(send_mail, "a@example.org"), "hi", urgent=True)
    ctx.kit.assert_not_deferred(functools.partial(send_mail, "b@example.org"), "hi", urgent=True)


async def test_methods_mocks_and_names(ctx):
    """What is equal is the same: a method of the same object, a mock, the name given to the task."""

    class Mailer:
        async def send(self, to):
            """Send nothing."""

    one, other, mock = Mailer(), Mailer(), AsyncMock()
    ctx.defer(one.send, "a")
    ctx.defer(mock, 1, two=2)
    ctx.with_options(name="audit").defer(fine, "x")
    ctx.kit.assert_deferred(one.send, to="a")
    ctx.kit.assert_not_deferred(other.send)
    ctx.kit.assert_deferred(mock, 1, two=2)
    ctx.kit.assert_not_deferred(mock, 1)
    ctx.kit.assert_deferred("audit", value="x")
    ctx.kit.assert_not_deferred("nobody")


async def test_awaitables_are_asked_for_by_function_or_name(ctx):
    """A coroutine has no arguments to compare any more."""
    ctx.wait_until(send_mail("a"))
    ctx.kit.assert_deferred(send_mail)
    ctx.kit.assert_deferred("send_mail")
    ctx.kit.assert_not_deferred(send_mail, "a")
    ctx.kit.assert_not_deferred(fine)
    ctx.kit.release()


async def test_how_often(ctx):
    """Exactly so often, with these arguments or any."""
    first, _, third = ctx.defer(fine, 1), ctx.defer(fine, 2), ctx.defer(fine, 1)
    assert len(ctx.kit.assert_deferred_times(3, fine)) == 3
    assert ctx.kit.assert_deferred_times(2, fine, 1) == [first, third]
    assert ctx.kit.assert_deferred_times(0, boom) == []
    with pytest.raises(AssertionError, match=r"fine\(1\) was deferred 2 time\(s\), not 1"):
        ctx.kit.assert_deferred_times(1, fine, 1)


async def test_nothing_at_all(ctx):
    """No work was deferred, whatever it is."""
    ctx.kit.assert_nothing_deferred()
    ctx.defer(fine)
    with pytest.raises(AssertionError, match=r"1 task\(s\) were deferred"):
        ctx.kit.assert_nothing_deferred()


async def test_the_message_lists_what_was_deferred_and_where(ctx):
    """With its arguments, its place, its context and what became of it."""
    handle = ctx.defer(send_mail, "a@example.org", urgent=True)
    with pytest.raises(AssertionError) as caught:
        ctx.kit.assert_deferred(send_mail, "b@example.org")
    assert str(caught.value) == (
        "send_mail('b@example.org') was not deferred. What was deferred:\n"
        f"  send_mail('a@example.org', urgent=True) at {handle.site} by test: pending"
    )
    with pytest.raises(AssertionError, match=r"send_mail was deferred\. What was deferred:"):
        ctx.kit.assert_not_deferred(send_mail)
    with pytest.raises(AssertionError, match=r"Nothing was deferred\."):
        create_context().kit.assert_deferred(send_mail)


async def test_the_message_survives_any_argument(ctx):
    """Long ones are cut, and a repr that raises is told of."""

    class Rude:
        def __repr__(self):
            raise RuntimeError

    ctx.defer(fine, "x" * 1000)
    ctx.defer(fine, Rude())
    with pytest.raises(AssertionError) as caught:
        ctx.kit.assert_deferred(boom)
    assert len(str(caught.value)) < 1000
    assert "repr raised RuntimeError" in str(caught.value)


async def test_what_was_discarded_was_not_deferred(ctx):
    """``when="success"`` and a failure: the mail is not sent, and the list says so."""
    kit = ctx.kit
    with pytest.raises(KeyError):
        async with ctx:
            ctx.with_options(when="success").defer(send_mail, "a")
            raise KeyError
    kit.assert_not_deferred(send_mail)
    with pytest.raises(AssertionError, match="discarded"):
        kit.assert_deferred(send_mail)
    assert kit.tasks == []


async def test_what_the_handler_awaits_is_not_deferred():
    """A ``sequential`` route runs its steps in the request."""

    @sequential
    async def handler():
        await current_context().run(fine, 1)

    async with create_context() as ctx:
        await handler()
    ctx.kit.assert_not_deferred(fine)
    with pytest.raises(AssertionError, match="awaited in the request"):
        ctx.kit.assert_deferred(fine)


async def test_what_threads_have_deferred_is_known_at_once():
    """A registration from a thread is seen by the next assertion."""
    async with create_context() as ctx:
        thread = threading.Thread(target=ctx.defer, args=(fine, 1))
        thread.start()
        thread.join()
        handle = ctx.kit.assert_deferred(fine, 1)
    assert ctx.kit.tasks == [handle]
    assert handle.state is TaskState.SUCCEEDED


async def test_a_recorder_is_a_hook():
    """It keeps every event, and asserts as a kit does."""
    recorder = Recorder()
    async with Supervisor(hooks=[recorder]) as supervisor:
        with supervisor.context() as ctx:
            ok, failed = ctx.defer(fine), ctx.defer(boom)
    assert [event.task for event in recorder.of(TaskDeferred)] == [ok, failed]
    assert {event.task for event in recorder.of(TaskSucceeded, TaskFailed)} == {ok, failed}
    assert recorder.events[-1].report.finished == 1
    assert recorder.tasks == [ok, failed]
    recorder.assert_deferred(fine)


async def test_a_kit_shows_events_errors_and_tasks():
    """All of them, in order."""
    with Kit() as kit:
        async with kit.context():
            handle = defer(fine)
        with pytest.raises(Exception, match="boom"):
            async with kit.context():
                defer(boom)
    assert kit.tasks[0] is handle
    assert [type(error).__name__ for error in kit.errors] == ["BoomError"]
    assert kit.of(TaskFailed)[0] in kit.events
