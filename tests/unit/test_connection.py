"""URIs are checked before the driver sees them, because its messages change with its versions."""

from __future__ import annotations

import pytest

from credit_mongo.errors import ConfigurationError
from credit_mongo.storage.connection import connect

PASSWORD = "Ge-heim"  # noqa: S105 - nobody's


@pytest.mark.parametrize("character", [*":/?#[]@", "%", "%zz", "?a=", "/?"])
def test_an_unescaped_character_in_a_password_is_named_and_the_password_is_not(
    character: str,
) -> None:
    """This holds whatever the driver would take the character for: a host, a port, an option."""
    uri = f"mongodb://ada:{PASSWORD}{character}{PASSWORD}@127.0.0.1/?replicaSet=rs0"
    with pytest.raises(ConfigurationError, match="percent-encoded") as refused:
        connect(uri, "app", 5)
    assert "heim" not in str(refused.value).lower()


async def test_escaped_credentials_are_accepted() -> None:
    """Every reserved character of RFC 3986 is accepted percent-encoded."""
    database = connect("mongodb://a%40b:%3A%2F%3F%23%5B%5D%25@127.0.0.1/?appName=x", "app", 5)
    await database.client.close()


def test_a_user_name_within_another_word_hides_no_message() -> None:
    """The driver says that the file is not readable, which contains the user name "ada"."""
    with pytest.raises(ConfigurationError, match=r"(?i)tlscafile"):
        connect(f"mongodb://ada:{PASSWORD}@127.0.0.1/?tls=true&tlsCAFile=/nowhere", "app", 5)


def test_an_option_that_quotes_the_password_in_lower_case_is_hidden() -> None:
    """The driver folds options to lower case, so its message may quote the password that way."""
    with pytest.raises(ConfigurationError) as refused:
        connect(f"mongodb://ada:GeHeim@127.0.0.1/?GeHeim={PASSWORD}", "app", 5)
    assert "heim" not in str(refused.value).lower()
