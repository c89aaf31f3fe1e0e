"""The page at `/` and its files, read once when the app is made."""

from pathlib import Path
from typing import Any, Final

import jinja2
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler

from marathon_app.controls import are_offered
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


def _file_route(name: str, media_type: str) -> HTTPRouteHandler:
    content = (FOLDER / name).read_bytes()

    @get(f"/{name}")
    async def serve() -> Response[Any]:
        """Serve one file of the page."""
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve
