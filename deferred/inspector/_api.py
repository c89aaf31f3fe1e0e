"""What the page asks for: requests, tasks, dead letters, the state of now.

Rules of this file: every list has a bound; a search is a text that is looked for as it is;
arguments are given to operators only, one task at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import msgspec

from deferred._events import Execution, TaskState
from deferred.inspector._access import Access, Person, Refused, Role
from deferred.inspector._arguments import keep_arguments, show_arguments
from deferred.inspector._dead import DeadLetters, Filter, Order
from deferred.inspector._export import table
from deferred.inspector._http import CSV, JSON, TEXT, Answer, Scope, as_json
from deferred.inspector._recorder import Recorder
from deferred.inspector._records import Ended, Trace
from deferred.inspector._views import RequestView, RowView, view_request, view_requests
from deferred.inspector.svg import render as render_svg
from deferred.inspector.text import render as render_text

__all__ = ["Api"]

logger = logging.getLogger("deferred.inspector")

PAGE = 100
MOST = 500
_SEARCH = 200


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of whom what is recorded is to be forgotten: of all without a text."""

    text: str = ""


class Api:
    """The answers of one inspector. Lives as long as it."""

    def __init__(self, recorder: Recorder, access: Access) -> None:
        self._recorder = recorder
        self._access = access
        self._letters = DeadLetters(recorder.supervisor)

    async def get(self, path: str, scope: Scope, person: Person) -> Answer:
        """Answer a question.

        Raises:
            Refused: There is no such thing, or it is not for this person.
        """
        query = {name: values[-1] for name, values in _query(scope).items()}
        self._recorder.look()
        match path.split("/"):
            case ["session"]:
                answer = self._session(person)
            case ["requests"]:
                answer = self._requests(query)
            case ["requests", key]:
                answer = await self._request(key)
            case ["tasks"]:
                answer = self._tasks(query)
            case ["tasks.csv"]:
                answer = self._table(query)
            case ["tasks", key, "arguments"]:
                answer = self._arguments(key, person)
            case ["dead"]:
                answer = await self._dead(query)
            case ["dead", key, "arguments"]:
                answer = as_json({"payload": await self._letters.payload(key, person)})
            case ["now"]:
                answer = as_json({**now(self._recorder), "depth": await self._letters.depth()})
            case _:
                raise Refused(404, "There is nothing here.")
        return answer

    async def post(self, path: str, body: bytes, person: Person) -> Answer:
        """Do something.

        Raises:
            Refused: There is no such action, or it is not what it says.
        """
        if path == "forget":
            return self._forget(body, person)
        try:
            order = msgspec.json.decode(body, type=Order)
        except msgspec.DecodeError as error:
            raise Refused(422, f"That is no order: {error}") from error
        what = path.removeprefix("dead/")
        return as_json({"ids": await self._letters.act(what, order, person)})

    # -- who and what ------------------------------------------------------------------------

    def _session(self, person: Person) -> Answer:
        about = {
            "name": person.name,
            "role": person.role.value,
            "token": self._access.token(person),
            "engine": self._letters.engine is not None,
        }
        return as_json(about)

    def _requests(self, query: Mapping[str, str]) -> Answer:
        change = self._recorder.change
        before = _number(query, "before", 0)
        wanted = query.get("text", "")[:_SEARCH].casefold()
        with_work = query.get("work") == "1"
        failed = query.get("failed") == "1"
        traces = [trace for trace in self._recorder.traces() if not before or trace.number < before]
        found: list[RequestView] = []
        limit = _number(query, "limit", PAGE)
        more = False
        # Looked at in parts: most of what is recorded need not be shown to fill a page.
        for start in range(0, len(traces), PAGE):
            views = view_requests(self._recorder, traces[start : start + PAGE])
            found += [view for view in views if _is_wanted(view, wanted, with_work=with_work, failed=failed)]
            if len(found) >= limit:
                more = len(found) > limit or start + PAGE < len(traces)
                break
        return as_json({"change": change, "more": more, "total": len(traces), "requests": found[:limit]})

    async def _request(self, key: str) -> Answer:
        key, _, kind = key.partition(".")
        # In a thread: a traceback shows lines of files, which are read now.
        view = await asyncio.to_thread(view_request, self._recorder, self._find(key))
        match kind:
            case "":
                return as_json(view)
            case "txt":
                return Answer(render_text(view).encode(), TEXT)
            case "svg":
                return Answer(render_svg(view).encode(), "image/svg+xml")
            case "json":
                name = f'attachment; filename="request-{view.number}.json"'
                return Answer(msgspec.json.format(as_json(view).body), JSON, headers={"Content-Disposition": name})
            case _:
                raise Refused(404, "There is nothing here.")

    def _find(self, key: str) -> Trace:
        trace = self._recorder.find(key)
        if trace is None:
            raise Refused(404, "This request is recorded no longer.")
        return trace

    def _tasks(self, query: Mapping[str, str]) -> Answer:
        found, total, names = self._find_tasks(query)
        states = [*(each.value for each in TaskState), "rejected", "enqueued"]
        executions = [each.value for each in Execution]
        about = {"names": sorted(names)[:MOST], "states": states, "executions": executions}
        return as_json({"tasks": found, "total": total, **about})

    def _table(self, query: Mapping[str, str]) -> Answer:
        """Return the same tasks for a spreadsheet."""
        found, _, _ = self._find_tasks({**query, "limit": query.get("limit", str(MOST))})
        titles = ("task", "state", "execution", "request", "began", "waited", "ran", "attempts", "error", "id")
        headers = {"Content-Disposition": 'attachment; filename="tasks.csv"'}
        return Answer(table(titles, map(_line_of, found)), CSV, headers=headers)

    def _find_tasks(self, query: Mapping[str, str]) -> tuple[list[dict[str, Any]], int, set[str]]:
        wanted = query.get("text", "")[:_SEARCH].casefold()
        name, state, execution = (query.get(each, "") for each in ("name", "state", "execution"))
        limit = _number(query, "limit", PAGE)
        names: set[str] = set()
        found: list[dict[str, Any]] = []
        total = 0
        for view in view_requests(self._recorder, self._recorder.traces()):
            for row in reversed(view.rows):
                if row.kind != "task":
                    continue
                names.add(row.name)
                fits = (
                    (not name or row.name == name)
                    and (not state or row.state == state)
                    and (not execution or row.execution == execution)
                    and (not wanted or wanted in _text_of(row, view))
                )
                total += fits
                if fits and len(found) < limit:
                    found.append({"request": view.id, "label": view.label, "began": view.began, "task": row})
        return found, total, names

    def _arguments(self, key: str, person: Person) -> Answer:
        if person.role is not Role.OPERATOR:
            raise Refused(403, "Arguments are shown to operators only.")
        arguments = next((ended.arguments for ended in self._ended() if ended.id == key), None)
        if arguments is None:
            tasks = (task for tasks in self._recorder.unfinished().values() for task in tasks)
            task = next((task for task in tasks if task.id == key), None)
            arguments = None if task is None else keep_arguments(task)
        if arguments is None:
            raise Refused(404, "Nothing is kept of this task's arguments.")
        logger.info("%r looked at the arguments of task %r", person.name, key)
        return as_json({"arguments": show_arguments(arguments)})

    def _ended(self) -> list[Ended]:
        return [ended for trace in self._recorder.traces() for ended in trace.ended or ()]

    # -- the engine --------------------------------------------------------------------------

    async def _dead(self, query: Mapping[str, str]) -> Answer:
        wanted = Filter(
            name=query.get("name", ""), reason=query.get("reason", ""), text=query.get("text", "")[:_SEARCH]
        )
        letters, total, names, reasons = await self._letters.page(wanted, _number(query, "limit", PAGE))
        return as_json({"letters": letters, "total": total, "names": names, "reasons": reasons})

    # -- forgetting ----------------------------------------------------------------------------

    def _forget(self, body: bytes, person: Person) -> Answer:
        """Forget what is recorded of whom it may concern: all, or what a text is found in."""
        try:
            text = msgspec.json.decode(body, type=Subject).text[:_SEARCH]
        except msgspec.DecodeError as error:
            raise Refused(422, f"That is no order: {error}") from error
        count = self.forget(text)
        logger.info("%r had %d recorded request(s) forgotten", person.name, count)
        return as_json({"forgotten": count})

    def forget(self, text: str) -> int:
        """Forget the requests in which `text` is found, all without one; return how many."""
        wanted = text.casefold()
        return self._recorder.forget(lambda trace: not wanted or self._holds(trace, wanted))

    def _holds(self, trace: Trace, text: str) -> bool:
        """Say whether anything that is kept of a request holds `text`, what is hidden included."""
        (view,) = view_requests(self._recorder, [trace])
        kept = [view.label, view.error, *(line.text for line in trace.lines or ())]
        for row in view.rows:
            kept += [row.name, row.error, *(attempt.error for attempt in row.attempts)]
        for ended in trace.ended or ():
            if (arguments := ended.arguments) is not None:
                kept.append(f"{arguments.args!r} {arguments.kwargs!r} {arguments.shown!r}")
        return any(text in each.casefold() for each in kept)


def now(recorder: Recorder) -> dict[str, Any]:
    """Return the state of now: counts, limits, the drain, the last minute."""
    supervisor = recorder.supervisor
    launcher = supervisor._launcher
    drain: dict[str, Any] | None = None
    if recorder.drain is not None:
        begun, over = recorder.drain
        drain = {"unfinished": begun.unfinished, "left": None if over else max(0.0, begun.deadline - launcher.now())}
        if over is not None:
            report = over.report
            late = [*report.cancelled, *report.abandoned]
            drain.update(duration=over.duration, finished=report.finished, failed=report.failed, late=late[:50])
    limits = {
        "max_running": launcher.slots.max_running,
        "max_pending": launcher.max_pending,
        "max_per_context": launcher.max_per_context,
        "overflow": launcher.overflow,
        "drain_timeout": launcher.timeout,
        "cancel_grace": launcher.grace,
    }
    return {
        "stats": supervisor.stats(),
        "draining": supervisor.draining,
        "drain": drain,
        "limits": limits,
        "requests": recorder.counts.requests,
        "kept": len(recorder.traces()),
        "bytes": recorder.size,
        "throughput": recorder.counts.latest(),
        "pid": os.getpid(),
    }


def _is_wanted(view: RequestView, text: str, *, with_work: bool, failed: bool) -> bool:
    if with_work and not view.rows and not view.omitted:
        return False
    if failed and not (view.error or (view.status or 0) >= 500 or any(row.state in _BAD for row in view.rows)):
        return False
    return not text or text in view.label.casefold() or any(text in _text_of(row, view) for row in view.rows)


_BAD = frozenset({"failed", "cancelled", "abandoned", "rejected"})


def _text_of(row: RowView, view: RequestView) -> str:
    return f"{row.name}\n{row.error}\n{row.id}\n{view.label}\n{view.id}".casefold()


def _line_of(found: Mapping[str, Any]) -> tuple[Any, ...]:
    row: RowView = found["task"]
    begun = row.attempts[0].started if row.attempts else None
    waited = None if begun is None else round(begun - row.created, 6)
    ran = None if begun is None or row.ended is None else round(row.ended - begun, 6)
    began = round(found["began"] + row.created, 3)
    about = (row.name, row.state, row.execution, found["label"], began, waited, ran)
    return (*about, len(row.attempts), row.error.partition("\n")[0], row.id)


def _query(scope: Scope) -> dict[str, list[str]]:
    try:
        return parse_qs(bytes(scope.get("query_string", b""))[:2000].decode("latin-1"), max_num_fields=20)
    except ValueError as error:
        raise Refused(400, "That question has too many parts.") from error


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, "")
    return (
        min(int(text), 10**12 if name == "before" else MOST)
        if text.isascii() and text.isdecimal() and len(text) < 15
        else default
    )
