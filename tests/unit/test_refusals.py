"""Every refusal of a setting says what was given, under which name, and the mend."""

import asyncio
import inspect
import math
import re
from datetime import timedelta

import pytest

from deferred import Limit, Retry, Supervisor
from deferred._retry import seconds


def step_of(name):
    """Time a step of this name."""
    with Supervisor().context() as ctx, ctx.step(name):
        raise AssertionError


REFUSALS = {
    "label": (lambda: Supervisor().context(7), TypeError, "the label of a context must be a text, not 7"),
    "step": (lambda: step_of(None), TypeError, "the name of a step must be a text, not None"),
    "no function": (
        lambda: Retry(on=7),
        TypeError,
        ("on must be an exception class, a tuple of them, or a function of the error, not 7"),
    ),
    "nothing to retry": (
        lambda: Retry(on=()),
        ValueError,
        ("on=() retries nothing: name the errors to retry, or leave the retry policy out"),
    ),
    "no class": (lambda: Retry(on=(OSError, "x")), TypeError, "on must name exception classes, not 'x'"),
    "no exception class": (lambda: Retry(on=int), TypeError, "on must name exception classes, not <class 'int'>"),
    "attempts as a text": (
        lambda: Retry(on=OSError, attempts="3"),
        TypeError,
        ("attempts must be a whole number or None, not '3'"),
    ),
    "attempts as a bool": (
        lambda: Retry(on=OSError, attempts=True),
        TypeError,
        ("attempts must be a whole number or None, not True"),
    ),
    "no attempt": (
        lambda: Retry(on=OSError, attempts=0),
        ValueError,
        ("attempts counts the first one too, so it is at least 1, not 0; for no retries leave the retry policy out"),
    ),
    "wait_initial": (
        lambda: Retry(on=OSError, wait_initial=-1),
        ValueError,
        ("wait_initial must be 0 or more and finite, not -1"),
    ),
    "wait_max": (lambda: Retry(on=OSError, wait_max="1"), TypeError, "wait_max must be a number of seconds, not str"),
    "wait_exp_base": (
        lambda: Retry(on=OSError, wait_exp_base=0.5),
        ValueError,
        ("wait_exp_base must be 1 or more, not 0.5"),
    ),
    "wait_exp_base of nothing": (
        lambda: Retry(on=OSError, wait_exp_base=0),
        ValueError,
        ("wait_exp_base must be more than 0 and finite, not 0"),
    ),
    "wait_exp_base as a time": (
        lambda: Retry(on=OSError, wait_exp_base=timedelta(seconds=2)),
        TypeError,
        "wait_exp_base must be a number, not datetime.timedelta(seconds=2)",
    ),
    "wait_jitter as a time": (
        lambda: Retry(on=OSError, wait_jitter=timedelta(0)),
        TypeError,
        "wait_jitter must be a number, not datetime.timedelta(0)",
    ),
    "serve": (lambda: Supervisor(serve="0"), TypeError, "serve must be True or False, not '0'"),
    "strict": (
        lambda: Supervisor().wrap(asyncio.sleep, strict=None),
        TypeError,
        "strict must be True or False, not None",
    ),
    "upgrade": (
        lambda: Supervisor().task("mail", upgrade=2)(asyncio.sleep),
        TypeError,
        "upgrade must be a function of the version and the arguments, not 2",
    ),
    "wait_jitter": (
        lambda: Retry(on=OSError, wait_jitter=1.5),
        ValueError,
        ("wait_jitter is a share between 0.0 and 1.0, not 1.5"),
    ),
    "wait_jitter below": (
        lambda: Retry(on=OSError, wait_jitter=-1),
        ValueError,
        ("wait_jitter must be 0 or more and finite, not -1"),
    ),
    "timeout": (lambda: Retry(on=OSError, timeout=0), ValueError, "timeout must be more than 0 and finite, not 0"),
    "a negative time": (
        lambda: seconds(timedelta(seconds=-1), "wait"),
        ValueError,
        ("wait must be more than 0 and finite, not -1.0"),
    ),
    "no time": (lambda: seconds(math.inf, "wait", zero=True), ValueError, "wait must be 0 or more and finite, not inf"),
    "a bool": (lambda: seconds(True, "wait"), TypeError, "wait must be a number of seconds, not bool"),
    "running": (lambda: Limit(running=0), ValueError, "Limit(running=...) must be 1 or more, not 0"),
    "pending": (lambda: Limit(pending="1"), TypeError, "Limit(pending=...) must be a whole number, not '1'"),
    "max_running": (lambda: Supervisor(max_running=0), ValueError, "max_running must be 1 or more, not 0"),
    "max_pending": (lambda: Supervisor(max_pending=1.5), TypeError, "max_pending must be a whole number, not 1.5"),
    "max_per_context": (
        lambda: Supervisor(max_per_context=False),
        TypeError,
        ("max_per_context must be a whole number, not False"),
    ),
    "overflow": (
        lambda: Supervisor(overflow="explode"),
        ValueError,
        ("overflow must be one of 'reject', 'wait', 'discard', not 'explode'"),
    ),
    "out_of_scope": (
        lambda: Supervisor(out_of_scope="no"),
        ValueError,
        ("out_of_scope must be one of 'raise', 'run', 'ignore', not 'no'"),
    ),
    "drain_timeout": (
        lambda: Supervisor(drain_timeout=-1),
        ValueError,
        ("drain_timeout must be 0 or more and finite, not -1"),
    ),
    "cancel_grace": (
        lambda: Supervisor(cancel_grace=-1),
        ValueError,
        ("cancel_grace must be 0 or more and finite, not -1"),
    ),
    "hook_timeout": (
        lambda: Supervisor(hook_timeout=0),
        ValueError,
        ("hook_timeout must be more than 0 and finite, not 0"),
    ),
    "watchdog": (lambda: Supervisor(watchdog=0), ValueError, "watchdog must be more than 0 and finite, not 0"),
    "offload": (lambda: Supervisor(offload=7), TypeError, "offload must be a concurrent.futures.Executor, not 7"),
    "hooks": (lambda: Supervisor(hooks=[7]), TypeError, "hooks must be functions, not 7"),
    "on_error": (lambda: Supervisor(on_error=["x"]), TypeError, "on_error must be functions, not 'x'"),
    "middleware": (lambda: Supervisor(middleware=[None]), TypeError, "middleware must be functions, not None"),
    "task_scope": (lambda: Supervisor(task_scope=[]), TypeError, None),
    "limits": (
        lambda: Supervisor(limits=[]),
        TypeError,
        ("limits must map names to Limit(running=..., pending=...), not []"),
    ),
    "a name in limits": (
        lambda: Supervisor(limits={7: Limit()}),
        TypeError,
        ("the names in limits must be texts, not 7"),
    ),
    "a limit": (
        lambda: Supervisor(limits={"mail": 7}),
        TypeError,
        ("limits['mail'] must be a Limit(running=..., pending=...), not 7"),
    ),
    "retry": (
        lambda: Supervisor(retry=7),
        TypeError,
        ("retry must be a Retry(on=...), a retry object of stamina or tenacity, or None, not 7"),
    ),
    "retry as a class": (
        lambda: Supervisor(retry=Retry),
        TypeError,
        (
            "retry must be a Retry(on=...), a retry object of stamina or tenacity, or None, "
            "not <class 'deferred._retry.Retry'>"
        ),
    ),
    "max_serving": (lambda: Supervisor(max_serving=0), ValueError, "max_serving must be 1 or more, not 0"),
    "hooks that are none": (lambda: Supervisor(hooks=7), TypeError, "hooks must be functions, not 7"),
    "no middleware": (lambda: Supervisor(middleware=None), TypeError, "middleware must be functions, not None"),
    "on_dead": (lambda: Supervisor(on_dead=[7]), TypeError, "on_dead must be functions, not 7"),
    "on_drain": (
        lambda: Supervisor(on_drain="hope"),
        ValueError,
        "on_drain must be one of 'abandon', 'enqueue', not 'hope'",
    ),
    "timeout of tasks": (lambda: Supervisor(timeout=0), ValueError, "timeout must be more than 0 and finite, not 0"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_settings(what):
    """A58, RT-19: a setting that makes no sense is refused where it is given, by its name."""
    make, kind, text = REFUSALS[what]
    with pytest.raises(kind, match=text and f"^{re.escape(text)}$"):
        make()


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, timedelta(milliseconds=1500), 1.7976931348623157e308])
def test_times(value):
    """A time is a number of seconds or a timedelta, the largest float included."""
    given = value.total_seconds() if isinstance(value, timedelta) else value
    assert seconds(value, "wait", zero=True) == given
    assert type(seconds(value, "wait", zero=True)) is float


@pytest.mark.looptime
async def test_a_policy_in_timedeltas():
    """S9, A58: a policy takes its times as timedeltas too, beside numbers, and waits as they say."""
    times = {"wait_initial": timedelta(seconds=1), "wait_max": timedelta(seconds=3), "timeout": timedelta(seconds=60)}
    for left_out in (None, *times):
        given = {name: time for name, time in times.items() if name != left_out}
        policy = Retry(on=OSError, wait_jitter=0, **given)
        known = {name: time.total_seconds() for name, time in times.items() if name in given}
        assert policy == Retry(on=OSError, wait_jitter=0, **known)
    began, attempts = asyncio.get_running_loop().time(), []

    async def fails_twice():
        attempts.append(asyncio.get_running_loop().time() - began)
        if len(attempts) < 3:
            raise OSError

    async with Supervisor(retry=Retry(on=OSError, wait_jitter=0, **times)) as supervisor:
        with supervisor.context() as ctx:
            ctx.defer(fails_twice)
    assert attempts == [pytest.approx(0), pytest.approx(1), pytest.approx(3)]


def test_the_last_attempt():
    """RT-12: the attempt with the number of `attempts` is the last; without a number there is none."""
    assert [Retry(on=OSError, attempts=2).exhausted(attempt) for attempt in (1, 2, 3)] == [False, True, True]
    assert not Retry(on=OSError, attempts=None).exhausted(10**9)


def test_every_setting_is_refused_by_name():
    """Each number and function that a supervisor takes is among those refused above."""
    asked = {what.removesuffix(" of tasks") for what in REFUSALS}
    assert set(inspect.signature(Supervisor).parameters) - asked <= {"engine"}


@pytest.mark.parametrize("handler", [len, lambda: (yield)])
def test_what_wrap_refuses(handler):
    """A33: a handler that is a generator is refused with the mend for it, another one without."""
    generates = inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler)
    with pytest.raises(TypeError) as caught:
        Supervisor().wrap(handler)
    assert ("wrap the function that iterates over it" in str(caught.value)) is generates


def test_what_wrap_refuses_of_asynchronous_generators():
    """A33: an asynchronous generator is refused with the mend too."""

    async def rows():
        raise AssertionError
        yield

    with pytest.raises(TypeError, match="wrap the function that iterates over it"):
        Supervisor().wrap(rows)
