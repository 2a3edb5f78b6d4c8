"""The command line, ``credit-mongo COMMAND …``. It needs the extra ``cli``.

Every command has these exit codes:

    0    done, and all is well
    1    something is wrong with the data, or something of the application's is in the way
    2    the command failed; one line on stderr says why and what to do
    130  Ctrl-C, or SIGTERM while it uses the database

Each module in ``credit_mongo/cli/commands`` is a command, and needs no registration:

    @app.command("count")                                       # from credit_mongo.cli.application
    def count(
        uri: Uri = None,                                        # from credit_mongo.cli.connecting
        database: DatabaseName = None,
        timeout: Timeout = 10.0,
        config: ConfigFile = None,                              # from ….cli.configuration
        as_json: AsJson = False,                                # from credit_mongo.cli.output
    ) -> int:
        \"\"\"Count the users.\"\"\"                                 # what --help shows
        where = Connecting.to(uri, database, timeout)

        async def work(database: Database) -> int:
            with progress("Counting", "users") as advance:      # from credit_mongo.cli.output
                return await count_users(database, on_progress=advance)

        users = where.run_on_ledger(settings_of(where, config), work)
        show_facts({"users": users}) if as_json else show(f"{where.database}: {users} users")
        return DONE                                             # from credit_mongo.cli.failures

A command returns its exit code and doesn't catch errors: ``failures.explain`` turns each into one
line. ``where.run_on_ledger`` connects, checks that the server is a replica set and that the
database has a ledger with these settings, runs the work and closes. ``where.run`` does the same
without checking for a ledger. A script only calls ``sys.exit(main(["count", *sys.argv[1:]]))``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. ``arguments`` come without the program's name. Returns the exit code."""
    try:
        import rich  # noqa: F401, PLC0415 - checks that the extra is installed
        import typer  # noqa: F401, PLC0415

        from credit_mongo.cli.application import run  # noqa: PLC0415 - it needs both

        return run(sys.argv[1:] if arguments is None else arguments)
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        needed = f"error: {error.name} is missing: pip install 'credit-mongo[cli]'"
        print(needed, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the command again to complete it", file=sys.stderr)
        return 130
