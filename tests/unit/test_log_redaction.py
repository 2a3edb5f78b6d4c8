"""The filter on the driver's log: what it hides, what it keeps, and when it does nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from credit_mongo.storage.redaction import REDACTED, Unlogged

SECRET = "the-secret"  # noqa: S105
LOGGER = logging.getLogger("pymongo.command")


class Records(logging.Handler):
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        """Return the messages."""
        return [record.getMessage() for record in self.records]


@pytest.fixture
def logged() -> Iterator[Records]:
    """What the driver's command logger passes on at DEBUG."""
    handler = Records()
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


class Message:
    """A message that is built when it is read, as the driver's messages are."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.was_read = False

    def __str__(self) -> str:
        self.was_read = True
        return json.dumps(self.fields)


def started(document: Any = None) -> Message:
    """Return the record that the driver logs before a command."""
    document = json.dumps(
        {"insert": "users", "documents": [SECRET]} if document is None else document
    )
    return Message(message="Command started", commandName="insert", requestId=7, command=document)


def test_a_command_outside_the_block_is_logged_unchanged(logged: Records) -> None:
    """The record is the same object, with the driver's own message."""
    message = started()
    LOGGER.debug(message)
    assert logged.records[0].msg is message
    assert SECRET in logged.texts[0]


def test_a_command_inside_the_block_is_logged_without_its_documents(logged: Records) -> None:
    """The command's name and number stay: they help to find slow commands."""
    with Unlogged():
        LOGGER.debug(started())
        LOGGER.debug(Message(message="Command succeeded", durationMS=1.5, reply=SECRET, new=SECRET))
    first, second = (json.loads(text) for text in logged.texts)
    assert first == {
        "message": "Command started",
        "commandName": "insert",
        "requestId": 7,
        "command": REDACTED,
    }
    assert second == {
        "message": "Command succeeded",
        "durationMS": 1.5,
        "reply": REDACTED,
        "new": REDACTED,
    }
    assert all(SECRET not in str(vars(record)) for record in logged.records)


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (
            json.dumps({"code": 13, "codeName": "U", "errmsg": SECRET}),
            {"code": 13, "codeName": "U"},
        ),
        ({"code": 13, "keyValue": SECRET}, {"code": 13}),
        (json.dumps({"errmsg": SECRET, "errtype": "AutoReconnect"}), {"errtype": "AutoReconnect"}),
        (json.dumps({"errmsg": SECRET}), REDACTED),
        (json.dumps({"errmsg": SECRET})[:-2] + "...", REDACTED),
        (json.dumps([SECRET]), REDACTED),
        (SECRET, REDACTED),
        (5, REDACTED),
        (None, REDACTED),
    ],
)
def test_a_failure_keeps_its_code(logged: Records, failure: Any, shown: Any) -> None:
    """A message that is cut off or of unknown form keeps nothing."""
    with Unlogged():
        LOGGER.debug(Message(message="Command failed", failure=failure))
    assert json.loads(logged.texts[0]) == {"message": "Command failed", "failure": shown}


@pytest.mark.parametrize(
    "message", [SECRET, "", "[1]", f'["{SECRET}"]', f'"{SECRET}"', "5", "null"]
)
def test_a_message_of_unknown_form_is_hidden(logged: Records, message: str) -> None:
    """This holds if a later driver logs in another form."""
    with Unlogged():
        LOGGER.debug(message)
        LOGGER.debug("%s", message)
    for text in logged.texts:
        assert "credit_mongo" in text
        assert SECRET not in text
    assert all(SECRET not in str(vars(record)) for record in logged.records)


async def test_tasks_begun_inside_the_block_are_covered_and_no_others(logged: Records) -> None:
    """A deadline runs its work in a task of its own."""

    async def command(name: str) -> None:
        await asyncio.sleep(0)
        LOGGER.debug(started({name: SECRET}))

    outside = asyncio.create_task(command("outside"))
    with Unlogged():
        with Unlogged():
            pass
        await asyncio.wait_for(command("within"), 5)
        within = asyncio.create_task(command("begun within"))
    after = asyncio.create_task(command("after"))
    await asyncio.gather(outside, within, after)
    shown = [text for text in logged.texts if SECRET in text]
    assert len(logged.texts) == 4
    assert len(shown) == 2
    assert "within" not in "".join(shown)


def test_an_error_inside_the_block_ends_it(logged: Records) -> None:
    """What the application logs afterwards is its own."""
    with pytest.raises(KeyError), Unlogged():
        raise KeyError
    LOGGER.debug(started())
    assert SECRET in logged.texts[0]


def test_without_debug_no_message_is_read(logged: Records) -> None:
    """The filter is not even called then, so it costs nothing."""
    LOGGER.setLevel(logging.INFO)
    message = started()
    with Unlogged():
        LOGGER.debug(message)
    assert logged.records == []
    assert not message.was_read


def test_the_filter_is_installed_once() -> None:
    """Importing the library again does not add another filter."""
    ours = [f for f in LOGGER.filters if type(f).__module__ == "credit_mongo.storage.redaction"]
    assert len(ours) == 1
