"""`trainenv watch` and `trainenv top`: a run as it trains, in the browser and in the terminal."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from typing import Any

from trainenv.cli.options import Result, add_command, as_path
from trainenv.types import UserError


def add_watch(commands: Any) -> None:
    """Add the command `watch`."""
    watch = add_command(
        commands, "watch", watch_command, "Show a run in the browser while it trains, read only."
    )
    _add_folder(watch)
    watch.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any other than the loopback needs a token, which is printed",
    )
    watch.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="port of the page (default: the first free one from 6180 on)",
    )


def add_top(commands: Any) -> None:
    """Add the command `top`."""
    top = add_command(
        commands, "top", top_command, "Show a run in the terminal while it trains, read only."
    )
    _add_folder(top)
    top.add_argument("--once", action="store_true", help="print one frame and end")


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=as_path,
        metavar="FOLDER",
        help="folder of a run; another process or machine may be writing to it",
    )


def watch_command(args: argparse.Namespace) -> Result:
    """Serve the page until Ctrl-C."""
    from trainenv.tools.optional import require

    require("starlette", "trainenv watch")
    require("uvicorn", "trainenv watch")
    from trainenv.watch.run_reader import RunReader
    from trainenv.watch.server import open_socket, serve

    if args.port is not None and not 0 <= args.port < 65536:
        raise UserError(f"--port must be from 0 to 65535, found {args.port}; 0 takes any free one")
    reader = RunReader(args.folder)
    reader.poll()
    server, address = open_socket(args.host, args.port)
    out = sys.stdout
    if args.json:
        out = sys.stderr
    print(f"watching {args.folder} at {address}", file=out, flush=True)
    print("end with Ctrl-C; the run continues without it", file=out, flush=True)
    with suppress(KeyboardInterrupt):
        serve(reader, server, address)
    return {"command": "watch", "folder": str(args.folder), "address": str(address)}, 0


def top_command(args: argparse.Namespace) -> Result:
    """Draw a frame every second until Ctrl-C; one frame where stdout is no terminal."""
    from rich.console import Console
    from rich.live import Live

    from trainenv.watch.run_reader import RunReader
    from trainenv.watch.state import state_of
    from trainenv.watch.terminal import frame

    reader = RunReader(args.folder)
    reader.poll()
    result = {"command": "top", "folder": str(args.folder)}
    if args.json:
        return {**result, **state_of(reader)}, 0
    console = Console(highlight=False)
    if args.once or not console.is_terminal:
        console.print(frame(reader, console))
        return result, 0
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False, screen=True) as live,
    ):
        while True:
            live.update(frame(reader, console), refresh=True)
            time.sleep(1.0)
            reader.poll()
    console.print(frame(reader, console))
    return result, 0
