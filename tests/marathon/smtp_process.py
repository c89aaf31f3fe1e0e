"""A mail server in a process of its own, which writes down what came, and answers when it is let.

Started as `python smtp_process.py FOLDER`: it prints its port. For each mail it appends a line of
JSON to FOLDER/came as it comes and, as it answers, to FOLDER/answered: its recipients and its
content. As long as FOLDER/hold exists, nothing is answered.
"""

import asyncio
import json
import sys
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session


class Recorder:
    """Writes each mail down, then answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep a mail."""
        mail = json.dumps({"to": envelope.rcpt_tos, "content": envelope.content.decode()})
        self.note("came", mail)
        while (self.folder / "hold").exists():
            await asyncio.sleep(0.01)
        self.note("answered", mail)
        return "250 OK"

    def note(self, what: str, mail: str) -> None:
        """Write it down."""
        with (self.folder / what).open("a") as lines:
            lines.write(f"{mail}\n")


async def main() -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(Path(sys.argv[1]))
    server = await loop.create_server(lambda: SMTP(recorder, hostname="localhost", loop=loop), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how the test learns it
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
