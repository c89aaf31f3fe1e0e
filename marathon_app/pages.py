"""The page at `/` and its two files, read once when the app is made."""

from pathlib import Path
from typing import Any, Final

import jinja2
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from marathon_app.responses import PAGE_POLICY
from marathon_app.settings import Settings

FOLDER: Final = Path(__file__).parent / "pages"


def page_routes(settings: Settings) -> list[HTTPRouteHandler]:
    """Read the page's files and return the routes that serve them.

    Args:
        settings: What the page shows of them: the demo delays, and whether mails can be watched.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("index.html").render(
        delays=settings.demo_delays, has_outbox=settings.mail_server is None
    )
    style = (FOLDER / "style.css").read_bytes()
    script = (FOLDER / "page.js").read_bytes()

    @get("/")
    async def index() -> Response[Any]:
        """Serve the page."""
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return Response(html, media_type="text/html", headers=headers)

    @get("/style.css")
    async def stylesheet() -> Response[Any]:
        """Serve the page's style."""
        return Response(style, media_type="text/css", headers={"Cache-Control": "no-cache"})

    @get("/page.js")
    async def module() -> Response[Any]:
        """Serve the page's module."""
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    return [index, stylesheet, module]
