"""What Hypothesis draws: plans of calls, with numbers for names that only a run knows."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from credit_mongo import KEEP

USERS = ("ann", "ben", "cat")
# The users of the calls: mostly those who exist from the beginning.
CALL_USERS = ("ann", "ann", "ben", "ben", "ann", "cat")
KEYS = (None, None, "k0", "k1", "k2")
NO_SUCH_ID = "65f0c0ffee0000000000beef"
TIERS = ("free", "premium", "enterprise", "partner", "gold")
ACTIONS = (
    "generate-post",
    "ai-completion",
    "generate-image",
    "translate",
    "share",
    "rebate",
    "bulk",
    "render",
    "nothing",
    "flat",
    "view-reports",
    "unheard-of",
)
# Seconds from now: past, this very moment, soon, and far ahead.
EXPIRIES = (None, None, -1, 0, 0.001, 60, 86_400 * 30)
METADATA: tuple[dict[str, Any] | None, ...] = (
    None,
    {},
    {"order": 7, "note": "café ☕"},
    {"nested": {"list": [1, None, "x", {"deep": 1.5}]}},
    {"$ref": "looks like", "$id": "a DBRef"},
    {"$gt": ""},
)
AMOUNTS = st.one_of(st.integers(1, 40), st.sampled_from([100, 2000, 2**53 - 1]))
NUMBERS = st.one_of(
    st.integers(-3, 600),
    st.none(),  # Not a number: this matters only if the price uses it.
    st.sampled_from([0, 0.1, 2.5, 0.5, 1e-7, Decimal("0.3"), Decimal("1E+3"), 10**5, 10**12]),
)


@dataclass(frozen=True)
class ChargeNumber:
    """The user's n-th newest charge. From 5 on, the newest transactions of any user."""

    number: int


@dataclass(frozen=True)
class GrantNumber:
    """The user's n-th newest grant. Without so many, an id that is no grant's."""

    number: int


@dataclass(frozen=True)
class HoldNumber:
    """One of the user's newest holds: up to 2, mostly an active one."""

    number: int


@dataclass(frozen=True)
class Seconds:
    """A moment this many seconds after the call."""

    from_now: float


@dataclass(frozen=True)
class Plan:
    """A call as it was drawn."""

    method: str
    user: str
    arguments: tuple[tuple[str, Any], ...]
    key: str | None
    metadata: int


def _moments(*others: Any) -> st.SearchStrategy[Any]:
    known = [value if value is None else Seconds(value) for value in EXPIRIES]
    return st.sampled_from([*known, *others])


_VARIABLES = st.dictionaries(
    st.sampled_from(["token", "words", "a", "b", "parts", "used", "n"]), NUMBERS, max_size=4
)
_EVERY_VARIABLE = st.fixed_dictionaries(
    dict.fromkeys(("token", "words", "a", "b", "parts", "used", "n"), NUMBERS)
)
_CHARGES = st.one_of(
    st.fixed_dictionaries({"action": st.sampled_from(ACTIONS)}),
    st.fixed_dictionaries({"action": st.sampled_from(ACTIONS), "amount": AMOUNTS}),
    st.fixed_dictionaries({"action": st.sampled_from(ACTIONS), "variables": _EVERY_VARIABLE}),
    st.fixed_dictionaries({"action": st.sampled_from(ACTIONS), "variables": _VARIABLES}),
)
_TOTALS = st.one_of(st.integers(0, 80), st.sampled_from([200, 3000]))
_HOLDS = st.builds(HoldNumber, st.integers(0, 4))
_ACTIONS = st.sampled_from(["support", "promotion", "generate-post"])
_ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "create_user": st.fixed_dictionaries(
        {
            "credits": st.sampled_from([0, 5, 100, 2000, 2**53 - 1]),
            "membership_tier": st.sampled_from([None, *TIERS]),
            "membership_expires_at": _moments(),
        }
    ),
    "charge": _CHARGES,
    "refund": st.one_of(
        st.fixed_dictionaries({"amount": AMOUNTS, "action": _ACTIONS}),
        st.fixed_dictionaries(
            {
                "amount": AMOUNTS,
                "action": _ACTIONS,
                "transaction_id": st.one_of(
                    st.builds(ChargeNumber, st.integers(0, 6)),
                    st.sampled_from(["no such", NO_SUCH_ID]),
                ),
            }
        ),
    ),
    "grant": st.one_of(
        st.fixed_dictionaries({"amount": AMOUNTS, "action": _ACTIONS}),
        st.fixed_dictionaries(
            {"amount": AMOUNTS, "action": _ACTIONS},
            optional={
                "expires_at": _moments(),
                "priority": st.sampled_from([50, 50, 0, 10, 100]),
                "source": st.sampled_from([None, "promotion", "payment"]),
            },
        ),
    ),
    "revoke": st.fixed_dictionaries(
        {
            "subject": st.builds(GrantNumber, st.integers(0, 3)),
            "action": _ACTIONS,
            "amount": st.none() | AMOUNTS,
        }
    ),
    "set_overdraft": st.fixed_dictionaries({"limit": st.sampled_from([0, 5, 50, 300])}),
    "place_hold": st.builds(
        lambda charge, terms: {**charge, **terms},
        _CHARGES,
        st.fixed_dictionaries(
            {
                "ttl": st.sampled_from([1, 60, 3600]),
                "overage": st.sampled_from(["available", "debt", "reject", "reject"]),
                "on_timeout": st.sampled_from(["settle", "settle", "release"]),
            }
        ),
    ),
    "extend_hold": st.fixed_dictionaries(
        {
            "subject": _HOLDS,
            "ttl": st.sampled_from([None, 1, 60, 3600]),
            "amount": st.none() | st.integers(0, 60),
            "used": st.none() | st.integers(0, 60),
        }
    ),
    "capture_hold": st.builds(
        lambda total, final: {**total, "final": final},
        st.one_of(
            st.fixed_dictionaries({"subject": _HOLDS}),
            st.fixed_dictionaries({"subject": _HOLDS, "amount": _TOTALS}),
            st.fixed_dictionaries({"subject": _HOLDS, "variables": _EVERY_VARIABLE}),
        ),
        st.booleans(),
    ),
    "release_hold": st.fixed_dictionaries({"subject": _HOLDS}),
    "upgrade_tier": st.fixed_dictionaries(
        {"target_tier": st.sampled_from(TIERS), "membership_expires_at": _moments(KEEP, KEEP)}
    ),
    "downgrade_tier": st.fixed_dictionaries(
        {"target_tier": st.sampled_from(TIERS), "clear_expiration": st.booleans()}
    ),
    "renew_tier": st.fixed_dictionaries(
        {
            "membership_expires_at": _moments(),
            "refill": st.booleans(),
            "allow_earlier": st.booleans(),
        }
    ),
}


AT_ONCE = (
    *("charge", "charge", "charge", "charge", "refund", "refund", "refund", "grant", "grant"),
    *("upgrade_tier", "upgrade_tier", "downgrade_tier", "renew_tier", "create_user"),
    *("set_overdraft", "place_hold", "place_hold"),
)
"""Methods whose calls keep their order when a user makes them at once."""
METHODS = (
    *AT_ONCE,
    *("grant", "grant", "revoke", "revoke", "extend_hold", "extend_hold", "release_hold"),
    *("capture_hold", "capture_hold", "capture_hold"),
)


def plans(*methods: str) -> st.SearchStrategy[Plan]:
    """Draw calls of these methods, or of all."""

    def of(method: str) -> st.SearchStrategy[Plan]:
        return st.builds(
            Plan,
            st.just(method),
            st.sampled_from(CALL_USERS),
            _ARGUMENTS[method].map(lambda arguments: tuple(arguments.items())),
            st.sampled_from(KEYS),
            st.integers(0, len(METADATA) - 1),
        )

    return st.sampled_from(methods or METHODS).flatmap(of)


# Each call is refused for the field named first, whatever else is wrong.
BAD_INPUT: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("user_id", "charge", {"user_id": {"$gt": ""}, "action": "generate-post"}),
    ("user_id", "grant", {"user_id": "", "amount": 1, "action": "support"}),
    ("user_id", "get_user", {"user_id": "a\x00b"}),
    ("action", "charge", {"action": "x" * 256}),
    ("action", "validate_access", {"action": None}),
    ("amount", "charge", {"action": "generate-post", "amount": 0}),
    ("amount", "charge", {"action": "generate-post", "amount": 1, "variables": {}}),
    ("amount", "grant", {"amount": True, "action": "support"}),
    ("amount", "grant", {"amount": 2**53, "action": "support"}),
    ("amount", "refund", {"amount": 1.0, "action": "support"}),
    ("amount", "refund", {"amount": "1", "action": "support"}),
    ("transaction_id", "refund", {"amount": 1, "action": "support", "transaction_id": 7}),
    ("credits", "create_user", {"credits": -1}),
    ("membership_tier", "create_user", {"membership_tier": 1}),
    ("membership_expires_at", "renew_tier", {"membership_expires_at": "tomorrow"}),
    ("target_tier", "upgrade_tier", {"target_tier": None}),
    ("clear_expiration", "downgrade_tier", {"target_tier": "free", "clear_expiration": 1}),
    ("refill", "renew_tier", {"membership_expires_at": None, "refill": None}),
    ("allow_earlier", "renew_tier", {"membership_expires_at": None, "allow_earlier": 1}),
    ("variables", "charge", {"action": "bulk", "variables": [("n", 1)]}),
    ("metadata", "grant", {"amount": 1, "action": "support", "metadata": {"x": object()}}),
    ("metadata", "grant", {"amount": 1, "action": "support", "metadata": [1]}),
    ("idempotency_key", "grant", {"amount": 1, "action": "support", "idempotency_key": ""}),
    ("session", "grant", {"amount": 1, "action": "support", "session": "mine"}),
    ("limit", "get_history", {"limit": 0}),
    ("offset", "get_history", {"offset": -1}),
    ("cursor", "get_history", {"cursor": "bm9uZQ"}),
    ("status", "get_audit_log", {"status": {"$ne": "failed"}}),
)
