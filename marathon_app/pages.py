"""The page at `/` and its files, read once when the app is made; beside it, the inspector."""

from pathlib import Path
from typing import Any, Final

import jinja2
from litestar import Request, Response, asgi, get
from litestar.datastructures import State
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from deferred import Supervisor
from deferred.inspector import Inspector
from marathon_app.controls import are_offered, is_loopback
from marathon_app.responses import PAGE_POLICY
from marathon_app.settings import Settings

FOLDER: Final = Path(__file__).parent / "pages"
FILES: Final = {
    "style.css": "text/css",
    "page.js": "text/javascript",
    "runs.js": "text/javascript",
    "waterfall.js": "text/javascript",
}
DURABLE: Final = "/api/marathon-durable"
INSPECTOR: Final = "/_deferred"


def page_routes(settings: Settings) -> list[HTTPRouteHandler]:
    """Read the page's files and return the routes that serve them.

    Args:
        settings: What the page shows of them: the demo delays, and what can be watched and switched.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("index.html")

    @get("/")
    async def index(request: Request[Any, Any, State]) -> Response[Any]:
        """Serve the page, which shows the executions that this app has."""
        paths = {route.path for route in request.app.routes}
        html = template.render(
            delays=settings.demo_delays,
            has_outbox=settings.mail_server is None,
            has_controls=are_offered(settings),
            restarts=settings.demo_restart,
            has_durable=DURABLE in paths,
            inspector=f"{INSPECTOR}/" if any(path.startswith(INSPECTOR) for path in paths) else None,
        )
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return Response(html, media_type="text/html", headers=headers)

    return [index, *(_file_route(name, media_type) for name, media_type in FILES.items())]


def inspector_routes(settings: Settings, supervisor: Supervisor) -> list[ASGIRouteHandler]:
    """Return the route of the inspector; none where the app can be reached from elsewhere.

    With the embedded mailbox this is a demonstration, and who sits at this machine may look. With a
    real mail server the names are those of real runners: the inspector's own rule holds then, and
    it is closed unless ``DEFERRED_DEBUG=1`` says that this is a developer's machine.

    Args:
        settings: Where the app listens, and where its mail goes.
        supervisor: Whose work is shown.
    """
    if not is_loopback(settings.host):
        return []
    # What the page itself asks for, several times a second, is not what it is about.
    ignore = ["/dev/", "/api/stats", "/health/", *(f"/{name}" for name in FILES)]
    inspector = Inspector(supervisor, debug=True if are_offered(settings) else None, ignore=ignore)

    @asgi(INSPECTOR, is_mount=True, copy_scope=True)
    async def inspect(scope: Scope, receive: Receive, send: Send) -> None:
        await inspector(scope, receive, send)  # type: ignore[arg-type]  # Litestar's scopes are TypedDicts

    return [inspect]


def _file_route(name: str, media_type: str) -> HTTPRouteHandler:
    content = (FOLDER / name).read_bytes()

    @get(f"/{name}")
    async def serve() -> Response[Any]:
        """Serve one file of the page."""
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve
