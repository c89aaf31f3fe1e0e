"""Arguments as data: what is stored, what is refused where it is stored, what is read back."""

import dataclasses
import datetime as dt
import enum
import json
import math
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred import PayloadError
from deferred._payload import MAX_BYTES, MAX_DEPTH, Arguments


class Distance(enum.Enum):
    HALF = "half"


@dataclasses.dataclass
class Runner:
    name: str
    start: int = 1


class Identity:
    """A struct that compares by identity is data all the same."""


class Opaque(msgspec.Struct, eq=False):
    value: int


def register(  # noqa: D103  # a signature
    first: int, /, name: str = "x", *rest: int, pace: float | None = None, runner: Runner | None = None, **more: object
): ...


def back(function, *args, **kwargs):
    """Return what is read of what was stored."""
    arguments = Arguments(function, "task")
    return arguments.decode(arguments.encode(args, kwargs))


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1,), {}, ((1,), {})),
        ((1, "y", 2, 3), {"pace": 1.5}, ((1, "y", 2, 3), {"pace": 1.5})),
        (
            (1,),
            {"runner": Runner("Ada"), "z": {"q": [1, None]}},
            ((1,), {"runner": Runner("Ada"), "z": {"q": [1, None]}}),
        ),
        ((2**70,), {"name": "\\u0000"}, ((2**70, "\\u0000"), {})),
    ],
)
def test_arguments_come_back_as_they_were_given(args, kwargs, expected):
    """Every kind of parameter is stored and read back; defaults are left to the code that runs."""
    assert back(register, *args, **kwargs) == expected


def test_types_of_the_signature_come_back():
    """Dates, UUIDs, enums, tuples, sets and structs are read back as what the signature says."""

    def task(
        day: dt.date,
        key: uuid.UUID,
        distance: Distance,
        pair: tuple[int, str],
        numbers: set[int],
        by_id: dict[int, Runner],
        opaque: Opaque,
    ): ...

    values = (dt.date(2026, 11, 24), uuid.UUID(int=7), Distance.HALF, (1, "a"), {1, 2}, {5: Runner("Ada")})
    (*found, opaque), _ = back(task, *values, Opaque(3))
    assert tuple(found) == values
    assert opaque.value == 3


def test_pydantic_models_come_back():
    """A class with pydantic's two methods is stored and validated by them."""
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):
        age: int

    def task(model, /): ...

    task.__annotations__["model"] = Model
    assert back(task, Model(age=3)) == ((Model(age=3),), {})
    with pytest.raises(PayloadError, match="age"):
        Arguments(task, "task").decode(b'{"model":{"age":"old"}}')


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument: 'first'"),
        (("1",), {}, "Expected `int`, got `str` - at `\\$.first`"),
        ((True,), {}, "Expected `int`, got `bool`"),
        ((1, None), {}, "Expected `str`, got `null`"),
        ((1,), {"pace": math.nan}, "nan is no number"),
        ((1,), {"z": [{"a": -math.inf}]}, "-inf is no number"),
        ((1, "a\0b"), {}, "NUL"),
        ((1,), {"z": {"a\0": 1}}, "NUL"),
        ((1, "\ud800"), {}, "lone surrogate"),
        ((1, "x" * MAX_BYTES), {}, f"{MAX_BYTES} is the limit"),
        ((1,), {"z": object()}, "builtins.object is no data"),
        ((1,), {"z": print}, "is no data"),
        ((1,), {"z": (1, 2)}, "'more': a dict would come back as something else"),
        ((1,), {"z": {1: "a"}}, "'more'"),
        ((1,), {"z": dt.date(2026, 1, 1)}, "Annotate the parameter with its type"),
    ],
)
def test_refuses_what_would_not_come_back(args, kwargs, says):
    """What cannot be read back as it was given is refused at the call, with the mend. D29 QU-20."""
    with pytest.raises(PayloadError, match=says):
        Arguments(register, "task").encode(args, kwargs)


def test_refuses_what_nests_too_deep():
    """Deep, and endless, nesting is refused; the bound itself is not. D29."""

    def task(tree: object): ...

    def nested(depth):
        tree = []
        for _ in range(depth - 1):
            tree = [tree]
        return tree

    arguments = Arguments(task, "task")
    arguments.encode((nested(MAX_DEPTH - 1),), {})  # the object of the arguments is one more
    arguments.encode(("[" * 500 + '"\\',), {})  # brackets of a text nest nothing
    arguments.encode(([[]] * 100,), {})
    with pytest.raises(PayloadError, match=f"deeper than {MAX_DEPTH}"):
        arguments.encode((nested(MAX_DEPTH),), {})
    endless = []
    endless.append(endless)
    with pytest.raises(PayloadError, match="nested in itself"):
        arguments.encode((endless,), {})


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[1]", b"null", b"\xff", b'{"first":"x"}', b'{"first":1,"unknown":2}', b"[" * 5000, b'{"first":1}x'],
)
def test_refuses_what_it_cannot_read(payload):
    """A stored payload that is broken, or does not fit, is refused without a crash. D26."""

    def task(first: int): ...

    with pytest.raises(PayloadError, match="cannot be run with what was stored"):
        Arguments(task, "task").decode(payload)


def test_signatures_that_are_no_data_are_refused_at_registration():
    """A parameter that could never be stored is refused when the function is registered."""

    def connection(connection: Identity): ...
    def inside(many: list[Identity]): ...
    def unresolved(thing: "Nowhere"): ...  # noqa: F821  # that is the test

    for task, says in ((connection, "Identity"), (inside, "Identity"), (unresolved, "Nowhere")):
        with pytest.raises(TypeError, match=says):
            Arguments(task, "task")


def test_an_argument_that_raises_when_compared_is_compared_by_type():
    """A class of the signature may refuse to be compared."""

    class Grumpy(msgspec.Struct, eq=False):
        value: int

        def __eq__(self, _other):
            raise RuntimeError

        __hash__ = None

    def task(grumpy): ...

    task.__annotations__["grumpy"] = Grumpy
    ((found,), _) = back(task, Grumpy(1))
    assert found.value == 1


class Twice(dt.tzinfo):
    """A zone in the hour that its clocks go through twice."""

    def utcoffset(self, at):
        """Return one hour the second time, two the first."""
        return dt.timedelta(hours=1 if at.fold else 2)


TWICE = Twice()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (list[dt.datetime], [dt.datetime(2026, 10, 25, 2, 30, tzinfo=TWICE, fold=fold) for fold in (0, 1)]),
        (dict[str, tuple[dt.datetime, ...]], {"twice": (dt.datetime(2026, 10, 25, 2, 30, tzinfo=TWICE),)}),
        (list[Opaque], [Opaque(1)]),
    ],
)
def test_what_does_not_equal_itself_elsewhere_is_looked_into(kind, value):
    """A time in the hour that clocks go through twice, or what compares by identity, is data in lists as well."""

    def task(each): ...

    task.__annotations__["each"] = kind
    ((found,), _) = back(task, value)
    assert msgspec.json.encode(found) == msgspec.json.encode(value)


def test_an_offset_that_loses_its_seconds_is_refused():
    """Local mean time of before 1893 has seconds, which JSON's times have not: another moment would come back."""

    def task(at: dt.datetime): ...

    with pytest.raises(PayloadError, match="'at': a datetime would come back"):
        back(task, dt.datetime(1890, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=3921))))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(DATA)
def test_any_json_comes_back(data):
    """Whatever JSON can say is accepted, stored as JSON, and read back equal."""

    def task(data): ...

    arguments = Arguments(task, "task")
    payload = arguments.encode((data,), {})
    assert json.loads(payload) == {"data": data}
    assert arguments.decode(payload) == ((data,), {})
