"""``credit-mongo studio``: look at the ledger in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from html import escape
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from credit_mongo.cli.application import app
from credit_mongo.cli.configuration import ConfigFile, settings_of
from credit_mongo.cli.connecting import Connecting, Database, DatabaseName, Timeout, Uri
from credit_mongo.cli.failures import DONE
from credit_mongo.cli.ledgers import whole_number
from credit_mongo.cli.output import AsJson, note, show, show_facts
from credit_mongo.core.values import check_identifier
from credit_mongo.errors import StorageError
from credit_mongo.ledger import CreditLedger

if TYPE_CHECKING:
    from credit_mongo.studio.gates import Gate
    from credit_mongo.studio.security import HostNames

_PORT: Final = 8480
_LAST_PORT: Final = 65_535
_LOOPBACK: Final = "127.0.0.1"
_PASSWORD: Final = "CREDIT_MONGO_STUDIO_PASSWORD"  # noqa: S105 - the variable's name


@app.command("studio", rich_help_panel="Records")
def studio(
    *,
    port: Annotated[
        str, typer.Option(metavar="N", help="The port to listen on; 0 takes any that is free.")
    ] = str(_PORT),
    opens: Annotated[
        bool, typer.Option("--open", help="Also open the page in this machine's browser.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Leave out everything that changes an account.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(metavar="NAME", help="The address to listen on. Others need a password."),
    ] = _LOOPBACK,
    search_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="A field of the users' documents to search by, such as email. May be repeated.",
        ),
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Who you are, for the audit log. Default: the user of this machine.",
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    uri: Uri = None,
    database: DatabaseName = None,
    timeout: Timeout = 10.0,
) -> int:
    """Look at the ledger in a browser: overview, users, transactions, holds, audit log, prices.

    The command prints a link that opens Studio once, within ten minutes, on this machine. It runs
    until Ctrl-C. With another --host, everybody who has the password of the environment variable
    CREDIT_MONGO_STUDIO_PASSWORD may look. Without the variable, the command asks for a password.
    Prices come from --config.
    """
    _check_extra()
    number = whole_number("--port", port)
    if number > _LAST_PORT:
        raise typer.BadParameter(f"--port must be at most {_LAST_PORT}")
    who = check_identifier("operator", operator or _user_of_this_machine())
    fields = [check_identifier("search_by", each) for each in search_by or ()]
    where = Connecting.to(uri, database, timeout)
    gate, hosts = _entrance(host, who)
    with _listen(host, number) as listening:
        settings = settings_of(where, config)

        async def work(found: Database) -> None:
            from credit_mongo.studio.application import application  # noqa: PLC0415 - optional

            async with CreditLedger(found, settings) as ledger:
                pages = application(
                    ledger, gate=gate, hosts=hosts, read_only=read_only, search_fields=fields
                )
                address = _address(host, listening, gate)
                _tell(address, where.database, gate, as_json=as_json)
                with _opened(address) if opens else contextlib.nullcontext():
                    await _serve(pages, listening)

        where.run_on_ledger(settings, work)
    return DONE


def _check_extra() -> None:
    try:
        import uvicorn  # noqa: F401, PLC0415 - optional

        import credit_mongo.studio  # noqa: F401, PLC0415 - optional
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        raise StorageError(f"{name} is missing: pip install 'credit-mongo[studio]'") from None


def _user_of_this_machine() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"


def _entrance(host: str, operator: str) -> tuple[Gate, HostNames]:
    """Who may come in, and by which names of this machine."""
    from credit_mongo.studio.gates import LinkGate, PasswordGate  # noqa: PLC0415 - optional
    from credit_mongo.studio.security import HostNames  # noqa: PLC0415 - optional

    if _is_loopback(host):
        return LinkGate(operator), HostNames(frozenset({"127.0.0.1", "localhost", "::1"}))
    names = {host.lower(), "localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    gate = PasswordGate(_password())
    note(
        "Passwords and credits cross the network as plain text. Let a proxy speak https, "
        "or stay on this machine and come through an SSH tunnel"
    )
    return gate, HostNames(frozenset(names), any_address=True)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _password() -> str:
    password = os.environ.get(_PASSWORD)
    if password is None and sys.stdin.isatty():
        password = getpass.getpass("Password for Studio: ")
    if password is None:
        raise typer.BadParameter(f"another --host needs a password: set {_PASSWORD}")
    return password


def _listen(host: str, port: int) -> socket.socket:
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            # From here on browsers can connect, and wait for the first answer.
            listening.listen()
            stack.pop_all()
    except OSError as error:
        raise typer.BadParameter(
            f"can't listen on {host} port {port}: {error.strerror or error}. Try another --port"
        ) from None
    return listening


def _address(host: str, listening: socket.socket, gate: Gate) -> str:
    from credit_mongo.studio.gates import LinkGate  # noqa: PLC0415 - optional

    port = listening.getsockname()[1]
    site = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    return f"{site}enter?token={gate.token}" if isinstance(gate, LinkGate) else site


def _tell(address: str, database: str, gate: Gate, *, as_json: bool) -> None:
    if as_json:
        show_facts({"database": database, "url": address})
    else:
        show(f"Studio of {database}: {address}")
        note("" if gate.asks_for_password else "The link works once, within ten minutes")
        note("Ctrl-C ends Studio")
    sys.stdout.flush()


@contextlib.contextmanager
def _opened(address: str) -> Iterator[None]:
    """Let the browser open a file that leads there. Others could see an address on its command
    line."""
    with tempfile.TemporaryDirectory(prefix="credit-mongo-") as directory:
        page = Path(directory, "studio.html")
        page.touch(mode=0o600)
        page.write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(address)}">',
            encoding="utf-8",
        )
        if not webbrowser.open(page.as_uri()):
            note("There is no browser to open: open the link yourself")
        yield


async def _serve(pages: Any, listening: socket.socket) -> None:
    """Answer until Ctrl-C."""
    import uvicorn  # noqa: PLC0415 - optional

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # Ctrl-C is how Studio ends, and no interruption of it.
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(signal.SIGINT, self.handle_exit, signal.SIGINT, None)
            yield

    # Not the address of each request in a log: it has ids of users.
    options = uvicorn.Config(
        pages,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    await Server(options).serve(sockets=[listening])
