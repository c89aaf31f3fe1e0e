"""A mail server in a process of its own, which writes down what came and when.

Started as `python smtp_process.py FILE [DELAY]`: it prints its port and appends a line of JSON to
FILE for each mail: its recipients, its content, and the clock when it came and when it was
answered, DELAY seconds later. The clock is monotonic, and one for all processes of a machine.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session


class Recorder:
    """Writes each mail down, then answers."""

    def __init__(self, file: Path, delay: float) -> None:
        self.file = file
        self.delay = delay

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep a mail."""
        came = time.monotonic()
        await asyncio.sleep(self.delay)
        mail = {
            "to": envelope.rcpt_tos,
            "content": envelope.content.decode(),
            "came": came,
            "answered": time.monotonic(),
        }
        with self.file.open("a") as lines:
            lines.write(json.dumps(mail) + "\n")
        return "250 OK"


async def main() -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    server = await loop.create_server(lambda: SMTP(recorder, hostname="localhost", loop=loop), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - how the test learns it
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
