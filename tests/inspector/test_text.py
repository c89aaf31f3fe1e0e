"""The waterfall in the terminal and as a picture."""

import re
from xml.etree import ElementTree as ET

import pytest

from deferred.inspector import AttemptView, RequestView, RowView, svg, text

STEP = RowView(
    kind="step",
    name="INSERT runners",
    state="succeeded",
    created=0.0,
    ended=0.18,
    attempts=[AttemptView(started=0.0, ended=0.18)],
)


def task(name="send mail", state="succeeded", **fields):
    """Return a task that ran after the response."""
    given = {"created": 0.18, "ended": 0.53, "attempts": [AttemptView(started=0.18, ended=0.53)], **fields}
    return RowView(kind="task", name=name, state=state, execution=fields.pop("execution", "deferred"), **given)


def request(*rows, **fields):
    """Return a request with a step and these rows."""
    given = {"response": 0.18, "done": 0.53, "status": 201, **fields}
    return RequestView(id="1", number=1, label="POST /runners", began=0, age=9, rows=[STEP, *rows], **given)


RETRIED = task(
    created=0.1,
    attempts=[
        AttemptView(started=0.2, ended=0.25, error="OSError: 421", backoff=0.1),
        AttemptView(started=0.35, ended=0.53),
    ],
)


def test_a_waterfall_in_the_terminal():
    """Steps, the wait before a task, attempts, the hatched wait between them, the line of the response."""
    drawn = text.render(request(RETRIED), width=72).splitlines()
    assert drawn == [
        "201 POST /runners · deferred           response 180 ms · all done 530 ms",
        "request          ███████████████┊                                 180 ms",
        "  INSERT runners ███████████████┊                                 180 ms",
        "  ↳ send mail            ·······┊▓▓▓▓▓////////████████████████    330 ms",
    ]


def test_a_failure_in_the_terminal():
    """The line of the error stands below its row."""
    failed = task(state="failed", outcome="failed", error="RuntimeError: 550 no such user\nmore")
    lines = text.render(request(failed), width=72).splitlines()
    assert "▓▓▓" in lines[3]
    assert lines[4] == "    RuntimeError: 550 no such user"


def test_what_goes_on_in_the_terminal():
    """What runs has no end yet."""
    running = task(state="running", ended=None, attempts=[AttemptView(started=0.18)])
    lines = text.render(request(running, done=None), width=72).splitlines()
    assert lines[0].endswith("all done …")
    assert "▒▒▒" in lines[3]
    assert lines[3].endswith("…")


@pytest.mark.parametrize("width", [10, 50, 72, 200])
def test_no_line_is_wider_than_the_terminal(width):
    """Long names are cut; a terminal narrower than 50 columns is treated as that wide."""
    wide = request(task(name="日本語" * 40, error="x" * 500))
    assert max(len(line) for line in text.render(wide, width=width).splitlines()) <= max(width, 50)


def test_names_move_no_cursor():
    """G16: Escape sequences, line ends and direction marks of a name are shown as what they are."""
    nasty = "\x1b[31mred\x1b[0m\n\r\u202egnp.exe"
    drawn = text.render(request(task(name=nasty, error=nasty)), width=120)
    assert not re.search("[\x1b\r\u202e]", drawn)
    assert r"\x1b[31mred" in drawn
    picture = svg.render(request(task(name=nasty, error=nasty)))
    assert not re.search("[\x1b\r\u202e]", picture)


def test_ascii_is_enough():
    """A terminal without Unicode gets a waterfall too."""
    drawn = text.render(request(task(name="ß")), width=72, unicode=False)
    assert drawn.isascii()
    assert "#####" in drawn


def test_colours_are_for_terminals():
    """Colour is asked for; without it nothing but text is written."""
    assert "\x1b[36m" in text.render(request(RETRIED), colour=True)
    assert "\x1b" not in text.render(request(RETRIED))


def test_what_was_left_out_is_said():
    """A request with more tasks than are kept says how many."""
    assert "  and 800 more" in text.render(request(omitted=800))


# --- as a picture ------------------------------------------------------------------------------


def bars(drawn):
    """Return where each bar of an SVG begins and ends, as parts of its track, by its colour."""
    root = ET.fromstring(drawn)
    rects = [each.attrib for each in root.iter("{http://www.w3.org/2000/svg}rect") if "width" in each.attrib]
    track = next(each for each in rects if each.get("height") == "16")
    left, width = float(track["x"]), float(track["width"])
    return [
        (each["fill"], (float(each["x"]) - left) / width, (float(each["x"]) + float(each["width"]) - left) / width)
        for each in rects
        if each.get("rx") == "2"
    ]


def test_the_geometry_of_the_picture_is_that_of_the_times():
    """Each bar stands where its time is on the axis."""
    drawn = bars(svg.render(request(RETRIED)))
    expected = [
        ("#3b82f6", 0, 0.18),
        ("#6366f1", 0, 0.18),
        ("#cbd5e1", 0.1, 0.2),
        ("#dc2626", 0.2, 0.25),
        ("url(#backoff)", 0.25, 0.35),
        ("#0d9488", 0.35, 0.53),
    ]
    assert [colour for colour, _, _ in drawn] == [colour for colour, _, _ in expected]
    for (_, left, right), (_, start, end) in zip(drawn, expected, strict=True):
        assert left == pytest.approx(start / 0.53, abs=0.005)
        assert right == pytest.approx(end / 0.53, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_needs_nothing_else(theme):
    """G04: No style, no script, no other file: it can be put anywhere."""
    drawn = svg.render(request(task(state="failed", error="</text><script>x</script>")), theme=theme)
    ET.fromstring(drawn)
    assert not re.search(r"<style|style=|<script|href|<image|<foreignObject", drawn)


def test_an_unknown_theme_is_refused():
    """The message names those that there are."""
    with pytest.raises(ValueError, match="'light', 'dark', not 'blue'"):
        svg.render(request(), theme="blue")
