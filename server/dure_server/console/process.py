"""Puts the console process together: settings, store, two servers, and a stop within seconds."""

import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from dure_pages.serving import STOP_SECONDS, loopback_config
from dure_protocols.enrolment import MAX_REQUEST_BYTES
from dure_protocols.errors import DureError
from dure_server.console.app import console_app
from dure_server.console.probes import Watch
from dure_server.enrolment.app import enrolment_app
from dure_server.enrolment.service import EnrolmentService
from dure_server.link.desk_client import DeskClient
from dure_server.logs import log_to_stderr
from dure_server.models import ModelRegistry
from dure_server.settings import ServerHome, ServerSettings
from dure_server.store import Store

LINK_PATIENCE_SECONDS = 2.0
"""A probe wants an answer now; a link that is started again answers the next one."""


class _Server(uvicorn.Server):
    """A server that leaves signals to `_serve`: two of them in one process would each take them from the other."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


def enrolment_server(home: ServerHome, settings: ServerSettings, app: FastAPI) -> uvicorn.Server:
    """The public side: HTTPS with the server's certificate, TLS 1.3 only."""
    config = uvicorn.Config(
        app,
        host=settings.bind_host,
        port=settings.enrolment_port,
        ssl_keyfile=home.server_key_file,
        ssl_certfile=str(home.server_certificate_file),
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_keep_alive=5,
        limit_concurrency=200,
        h11_max_incomplete_event_size=MAX_REQUEST_BYTES,
        server_header=False,
        ws="none",
        proxy_headers=False,
        access_log=False,
        log_config=None,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return _Server(config)


def console_server(settings: ServerSettings, app: FastAPI) -> uvicorn.Server:
    """The operator's side: until its pages know roles, only this machine may ask for them; see `console.guard`."""
    return _Server(loopback_config(app, settings.console_port))


async def _serve(servers: list[uvicorn.Server], stopping: asyncio.Event) -> bool:
    def stop() -> None:
        stopping.set()
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    # One without the other is of no use: whichever ends first takes the other along.
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    was_asked = stopping.is_set()
    stop()
    await asyncio.gather(*tasks)
    return was_asked


def main(home_path: Path, *, as_json: bool = False) -> int:
    """Serve until SIGTERM. The exit code; errors go to stderr as one sentence."""
    log_to_stderr("console", as_json=as_json)
    home = ServerHome(home_path)
    try:
        settings = home.settings()
        store = Store.open(home.store_url(settings))
        service = EnrolmentService(store, home.authority(), settings.link_port, ModelRegistry(home.models))
        stopping = asyncio.Event()
        watch = Watch(home, store, DeskClient(home.desk_socket, patience_seconds=LINK_PATIENCE_SECONDS))
        servers = [
            enrolment_server(home, settings, enrolment_app(service)),
            console_server(settings, console_app(store, settings.console_port, stopping, watch)),
        ]
        return 0 if asyncio.run(_serve(servers, stopping)) else 1
    except DureError as error:
        print(f"dure-server console: {error}", file=sys.stderr, flush=True)
        return 1
    except SystemExit:  # uvicorn's way to say that it could not listen; its log line says why
        return 1
