"""The bugs: which text is replaced by which, and which tests must fail.

Each is a mistake that somebody could make and a reviewer could miss. ``was`` must stand exactly
once in its file. A bug whose text is missing is reported, never skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["PLANTED", "Bug"]

RULES: Final = "tests/unit/decisions"
ADVANCE: Final = "tests/unit/test_advance.py"
REQUESTS: Final = "tests/unit/test_requests.py"
FORMULA: Final = "tests/unit/test_formula.py"
CONFIG: Final = "tests/unit/test_config.py"
VARIABLES: Final = "tests/unit/test_variables.py"
ERRORS: Final = "tests/unit/test_errors.py"
LANES: Final = "tests/unit/test_lanes.py"
OBSERVER: Final = "tests/integration/test_observer.py"
ATTEMPT: Final = "tests/unit/test_attempts.py"
OPERATIONS: Final = "tests/integration/operations"
CONCURRENCY: Final = "tests/integration/test_concurrency.py"
OUTCOMES: Final = "tests/integration/test_commit_outcomes.py"
SESSIONS: Final = "tests/integration/test_application_transactions.py"
TURNS: Final = "tests/integration/test_turns.py"
UNIT_TURNS: Final = "tests/unit/test_turns.py"
HALVES: Final = "tests/integration/test_half_operations.py"
BAD_INPUT: Final = "tests/integration/bad_input"
VERIFY: Final = "tests/integration/test_verify.py"
VERIFY_COST: Final = "tests/integration/test_verify_cost.py"
REPORT_COST: Final = "tests/integration/test_report_cost.py"
REAPER: Final = "tests/integration/test_session_reaper.py"
SECRECY: Final = "tests/integration/test_secrecy.py"
READS: Final = "tests/integration/test_reads.py"
SKEW: Final = "tests/integration/test_clock_skew.py"
FOREIGN: Final = "tests/integration/test_foreign_rows.py"
INDEXES: Final = "tests/integration/test_indexes.py"
SETTINGS: Final = "tests/integration/test_ledger_settings.py"
COMMAND_SETTINGS: Final = "tests/integration/test_command_settings.py"
TTL_INDEXES: Final = "tests/integration/test_ttl_indexes.py"
COSTS: Final = "tests/integration/test_keys_examined.py"
KEYS: Final = "tests/integration/operations/test_keys_and_pages.py"
ERASE: Final = "tests/integration/test_erase.py"
HALF_ERASED: Final = "tests/integration/test_erase_half_done.py"
FINGERPRINTS: Final = "tests/unit/test_fingerprints.py"
BODIES: Final = "tests/integration/test_fastapi_bodies.py"
PAID: Final = "tests/integration/test_fastapi.py"
FILES: Final = "tests/integration/test_archive_files.py"
EXPORT: Final = "tests/integration/test_export.py"
LOCAL: Final = "tests/integration/test_local.py"
PARTS: Final = "tests/integration/test_fastapi_applications.py"


@dataclass(frozen=True)
class Bug:
    """A bug: in ``file`` of the package, ``was`` becomes ``now``."""

    name: str
    file: str
    was: str
    now: str
    tests: tuple[str, ...]


PLANTED: Final = (
    # Rules
    Bug(
        "a missing balance guard",
        "core/operations/charge.py",
        "if priced.cost > account.available:",
        "if False:",
        (RULES,),
    ),
    Bug(
        "the last credit cannot be spent",
        "core/operations/charge.py",
        "if priced.cost > account.available:",
        "if priced.cost >= account.available:",
        (RULES,),
    ),
    Bug("a seq is skipped", "core/decision.py", "account.seq + 1,", "account.seq + 2,", (RULES,)),
    Bug(
        "time goes back with the clock",
        "core/policy.py",
        "        return last\n",
        "        return now\n",
        (RULES,),
    ),
    Bug(
        "a charge is refunded beyond its amount",
        "core/operations/refund.py",
        "if request.amount > charge.refundable:",
        "if request.amount > charge.charged:",
        (RULES,),
    ),
    Bug(
        "somebody else's charge is refunded",
        "core/state.py",
        "if found is None or found.user_id != user_id:",
        "if found is None:",
        (RULES,),
    ),
    Bug(
        "an expired membership is kept by an upgrade",
        "core/operations/upgrade_tier.py",
        "expires_at = None if is_past(kept, now) else kept",
        "expires_at = kept",
        (RULES,),
    ),
    Bug(
        "an upgrade to the user's own tier",
        "core/operations/upgrade_tier.py",
        "target_level <= policy.membership.level(current)",
        "target_level < policy.membership.level(current)",
        (RULES,),
    ),
    Bug(
        "rows to delete are found by another index than that of their ids",
        "storage/database.py",
        "hint=BY_ID, session",
        "session",
        (COSTS,),
    ),
    Bug(
        "a user's failed attempts have no index of their own",
        "storage/documents.py",
        "            FAILED_OF_USER,\n",
        "",
        (COSTS,),
    ),
    Bug(
        "old refusals are found through any index with a status",
        "maintenance/cleanup.py",
        "            self._index = index\n",
        "            pass\n",
        (COSTS,),
    ),
    Bug(
        "each step of an erasure begins at the newest row again",
        "maintenance/erase.py",
        "        self._erased_to |= self._erased_by_attempt\n",
        "",
        (COSTS,),
    ),
    Bug(
        "an index of an earlier version is not named",
        "maintenance/index_plan.py",
        'index["name"] == former["name"]',
        "False",
        (INDEXES,),
    ),
    Bug(
        "an unknown unique index is not reported",
        "maintenance/unique_indexes.py",
        "    return not (index.get(",
        "    return False and not (index.get(",
        (INDEXES,),
    ),
    Bug(
        "an index's collation is not checked",
        "engine/opening.py",
        "        await check_collations(self._database)\n",
        "",
        (INDEXES,),
    ),
    Bug(
        "a late webhook shortens a membership",
        "core/operations/renew_tier.py",
        "if is_earlier and not request.allow_earlier:",
        "if False:",
        (RULES,),
    ),
    Bug(
        "a renewal always refills",
        "core/operations/renew_tier.py",
        "refill=request.refill",
        "refill=True",
        (RULES,),
    ),
    Bug(
        "a charge with an amount skips the access check",
        "core/operations/charge.py",
        "            policy.find_price(account, request.action, tier)\n            priced",
        "            priced",
        (RULES,),
    ),
    Bug(
        "a balance may exceed what BSON holds",
        "core/values.py",
        "if amount > LARGEST_BALANCE - account.credits:",
        "if False:",
        (RULES,),
    ),
    Bug(
        "a grant lowers the balance",
        "core/operations/grant.py",
        "post(request, account, request.amount, now, {}, changed=changed, legs=legs)",
        "post(request, account, -request.amount, now, {}, changed=changed, legs=legs)",
        (RULES,),
    ),
    Bug(
        "an expired membership still prices",
        "core/membership.py",
        "if tier is None or is_past(account.membership_expires_at, now):",
        "if tier is None:",
        (RULES,),
    ),
    Bug(
        "a membership that ends this moment is still in force",
        "core/membership.py",
        "expires_at <= now",
        "expires_at < now",
        (RULES,),
    ),
    Bug(
        "a tier does not reach its own requirement",
        "core/membership.py",
        "self.level(tier) < self.level(required)",
        "self.level(tier) <= self.level(required)",
        (RULES,),
    ),
    # Prices
    Bug(
        "prices are rounded the wrong way",
        "core/pricing.py",
        "(2 * exact.numerator + exact.denominator) //",
        "(2 * exact.numerator + exact.denominator - 1) //",
        (RULES, CONFIG),
    ),
    Bug(
        "a formula below zero gives credits",
        "core/pricing.py",
        "return Priced(max(cost, 0), price.text, used)",
        "return Priced(cost, price.text, used)",
        (RULES,),
    ),
    Bug(
        "a formula without its variables costs the default",
        "core/pricing.py",
        "if variables is None and price.variables:",
        "if not variables and price.variables:",
        (RULES,),
    ),
    Bug(
        "division is rounded",
        "core/formula_nodes.py",
        '"/": truediv,',
        '"/": lambda a, b: Fraction(a // b),',
        (FORMULA,),
    ),
    Bug(
        "a float is read as its binary value",
        "core/variables.py",
        "return Decimal(float.__repr__(value))",
        "return Decimal(value)",
        (VARIABLES,),
    ),
    Bug(
        "a value that is not a number counts as zero",
        "core/formula.py",
        'raise InvalidRequestError(f"variables.{name}", value.reason)',
        "value = Fraction(0)",
        (VARIABLES,),
    ),
    Bug(
        "a remainder has the sign of the divisor",
        "core/formula_nodes.py",
        "trunc(dividend / divisor)",
        "floor(dividend / divisor)",
        (FORMULA,),
    ),
    Bug(
        "a fixed price that rounds to nothing is accepted",
        "core/price_checks.py",
        "if amount > 0 and units == 0:",
        "if False:",
        (CONFIG,),
    ),
    Bug(
        "a constant formula below zero is accepted",
        "core/price_checks.py",
        "if amount < 0:",
        "if False:",
        (CONFIG,),
    ),
    # Requests
    Bug(
        "a bool is an amount",
        "core/values.py",
        "    if isinstance(value, bool) or not isinstance(value, int):\n"
        '        raise InvalidRequestError(field, f"must be an int, not',
        "    if not isinstance(value, int):\n"
        '        raise InvalidRequestError(field, f"must be an int, not',
        (REQUESTS, BAD_INPUT),
    ),
    Bug(
        "identifiers may have control characters",
        "core/values.py",
        "if _FORBIDDEN.search(value):",
        "if False:",
        (REQUESTS,),
    ),
    Bug(
        "a fingerprint that ignores the amount",
        "core/operations/charge.py",
        "return (self.action, self.amount, numbers_of(self.variables))",
        "return (self.action, numbers_of(self.variables))",
        (REQUESTS, OPERATIONS),
    ),
    Bug(
        "a fingerprint that ignores the user",
        "core/decision.py",
        "(self.operation, self.user_id, *self.effect)",
        "(self.operation, *self.effect)",
        (REQUESTS, OPERATIONS),
    ),
    Bug(
        "a fingerprint that ignores the charge that is refunded",
        "core/operations/refund.py",
        "self.action, self.amount, self.charge_id)",
        "self.action, self.amount)",
        (REQUESTS, OPERATIONS),
    ),
    Bug(
        "a moment keeps microseconds that the database cuts off",
        "core/values.py",
        "moment.replace(microsecond=moment.microsecond // 1000 * 1000)",
        "moment",
        (REQUESTS, OPERATIONS),
    ),
    # Batches
    Bug(
        "what is due is never posted",
        "core/batch.py",
        "    batch.postings += advanced.postings\n",
        "",
        (ADVANCE,),
    ),
    Bug(
        "an expiry is dated when it was found, not when it was due",
        "core/advance.py",
        "updated_at=max(at, before.updated_at)",
        "updated_at=self._now",
        (ADVANCE,),
    ),
    Bug(
        "ids of due rows derive from user and seq",
        "core/advance.py",
        "derived_id(self._request_id, self._account.seq),",
        "derived_id(f'{before.user_id:>024}', before.seq),",
        (ADVANCE,),
    ),
    Bug(
        "a key that answers any request",
        "core/batch.py",
        "known.fingerprint == request.fingerprint",
        "True",
        (RULES, OPERATIONS),
    ),
    Bug(
        "a request ignores what earlier requests of its batch did",
        "core/batch.py",
        "    batch.state.accounts[posting.account.user_id] = posting.account\n",
        "",
        (RULES, CONCURRENCY),
    ),
    Bug(
        "refunds in one batch do not see each other",
        "core/state.py",
        "refunded = self.charge.refunded + self.amount",
        "refunded = self.charge.refunded",
        (RULES, CONCURRENCY),
    ),
    Bug(
        "a key is used twice in one batch",
        "core/batch.py",
        "        batch.state.remembered[request.key] = remembered\n",
        "",
        (RULES, CONCURRENCY),
    ),
    Bug(
        "a replay is not marked as one",
        "core/batch.py",
        "return replace(deepcopy(known.result), replayed=True)",
        "return deepcopy(known.result)",
        (RULES, OPERATIONS),
    ),
    Bug(
        "a replay shares its metadata with the next",
        "core/batch.py",
        "return replace(deepcopy(known.result), replayed=True)",
        "return replace(known.result, replayed=True)",
        (RULES, CONCURRENCY),
    ),
    # Rows
    Bug(
        "an update overwrites the application's fields",
        "storage/users.py",
        'return {"q": {"_id": self.id_of(after.user_id)}, "u": changes}',
        'return {"q": {"_id": self.id_of(after.user_id)}, "u": self.row(after)}',
        (OPERATIONS,),
    ),
    Bug(
        "a tier change is not stored",
        "storage/users.py",
        "        if after.membership_tier != before.membership_tier:\n",
        "        if after.membership_tier is None:\n",
        (OPERATIONS,),
    ),
    Bug(
        "numbers become doubles",
        "storage/numbers.py",
        "to_int64: Final = lru_cache(maxsize=8192)(Int64)",
        "to_int64: Final = lru_cache(maxsize=8192)(float)",
        (OPERATIONS,),
    ),
    Bug(
        "keys never expire",
        "storage/rows.py",
        '"expiresAt": created_at + (request.key_lifetime or remembered_for),',
        '"expiresAt": created_at + 1000 * (request.key_lifetime or remembered_for),',
        (OPERATIONS,),
    ),
    Bug(
        "a call's own lifetime of its key is forgotten",
        "storage/rows.py",
        '"expiresAt": created_at + (request.key_lifetime or remembered_for),',
        '"expiresAt": created_at + remembered_for,',
        (KEYS,),
    ),
    Bug(
        "a transaction forgets its key's own lifetime",
        "storage/rows.py",
        "created_at + (posting.key_lifetime or remembered_for)",
        "created_at + remembered_for",
        (KEYS,),
    ),
    Bug(
        "a key's own lifetime has no room for wrong clocks",
        "ledger.py",
        "        return ttl + self._key_gap\n",
        "        return ttl\n",
        (SKEW,),
    ),
    Bug(
        "the caller's own metadata is stored",
        "storage/rows.py",
        "    copied: Raw = _plain(decoded, DEEPEST_METADATA)\n    return copied",
        "    return dict(metadata)",
        (BAD_INPUT, OPERATIONS),
    ),
    Bug(
        "a stored balance below zero is accepted",
        "storage/users.py",
        "if value >= 0 or (field == self._credits and document.get(self._extras) is not None):",
        "if True:",
        (BAD_INPUT, OPERATIONS),
    ),
    # Store
    Bug(
        "a call ignores its session",
        "storage/unit_of_work.py",
        "await database.command({**command, **fields_of(session)}, session=session)",
        "await database.command(command)",
        (OPERATIONS, SESSIONS),
    ),
    Bug(
        "refunds are read outside of the transaction",
        "storage/unit_of_work.py",
        "            ],\n            session=session,\n",
        "            ],\n",
        (SESSIONS, OPERATIONS),
    ),
    Bug(
        "a fraction of a unit is cut off",
        "storage/fields.py",
        " and value.is_integer():",
        ":",
        (FOREIGN,),
    ),
    Bug(
        "a damaged refund is not counted",
        "storage/rows.py",
        "        if amount is None:\n            reason =",
        "        if amount is None:\n            continue\n            reason =",
        (FOREIGN,),
    ),
    Bug(
        "pages ignore rows without dates",
        "storage/pages.py",
        '{"createdAt": {"$not": {"$gte": moment}}}',
        '{"createdAt": {"$lt": moment}}',
        (FOREIGN,),
    ),
    Bug(
        "a date far in the future is believed",
        "core/policy.py",
        "self.max_lead is not None and last - now > self.max_lead",
        "False",
        (SKEW,),
    ),
    Bug(
        "a look at the settings that hangs holds up all operations",
        "engine/opening.py",
        "self._seconds = timeout_seconds / 3",
        "self._seconds = timeout_seconds * 3",
        (SETTINGS,),
    ),
    Bug(
        "a wrong clock charges in batches",
        "engine/commit.py",
        "        await self._clock.check(batch.now, session, read_at=batch.began)\n",
        "",
        (SKEW,),
    ),
    Bug(
        "a wrong clock charges in applications' transactions",
        "engine/commit.py",
        "            await self._clock.check(now, session, read_at=read_at)\n",
        "",
        (SKEW,),
    ),
    Bug(
        "the ends of lots and holds have no time zone",
        "storage/extras.py",
        "value = in_utc(self._stored.get(name))",
        "value = self._stored.get(name)",
        ("tests/unit/test_stored_moments.py",),
    ),
    Bug(
        "moments are stored in the time zone that they came in",
        "storage/numbers.py",
        "return moment.astimezone(timezone.utc).replace(tzinfo=None)",
        "return moment.replace(tzinfo=None)",
        ("tests/unit/test_stored_moments.py",),
    ),
    Bug(
        "the primary's clock is not read",
        "storage/clocks.py",
        "self._answer = answer = await self._ask_the_primary()",
        "raise ClockSkewError(2 * allowed, allowed)",
        (SKEW,),
    ),
    Bug(
        "a clock that was set during an operation is not noticed",
        "storage/clocks.py",
        "return start + loop_time, self._read().timestamp()",
        "return self._read().timestamp(), self._read().timestamp()",
        (SKEW,),
    ),
    Bug(
        "after one reading of the primary's clock any clock is accepted for a while",
        "storage/clocks.py",
        "if known and is_recent and abs(self._skew(known, start, loop_time())) <= allowed:",
        "if known and is_recent:",
        (SKEW,),
    ),
    Bug(
        "a key lives for less where clocks differ",
        "ledger.py",
        "config.idempotency.ttl_seconds) + self._key_gap,\n",
        "config.idempotency.ttl_seconds),\n",
        (SKEW,),
    ),
    Bug(
        "an expired key is replayed",
        "storage/unit_of_work.py",
        "live = [d for d in documents if not _is_over(d, now)]",
        "live = list(documents)",
        (OPERATIONS,),
    ),
    Bug(
        "an expired record is not replaced",
        "storage/unit_of_work.py",
        "replaced = [key for key in keys if key in loaded.forgotten_keys]",
        "replaced = []",
        (OPERATIONS,),
    ),
    Bug(
        "a refused attempt is not audited",
        "storage/unit_of_work.py",
        "            audit_logs += [refusal_row(r) for r in decided.refusals if is_audited(r)]\n",
        "            pass\n",
        (OPERATIONS,),
    ),
    Bug(
        "a refusal in an application's transaction is not audited",
        "storage/unit_of_work.py",
        "        if self._audits and is_audited(refusal):\n",
        "        if False:\n",
        (SESSIONS,),
    ),
    Bug(
        "an audit row in the application's transaction is lost with it",
        "engine/commit.py",
        "                await self._store.write_refusal(refusal)\n",
        "                await self._store.write(books, loaded, session)\n",
        (SESSIONS,),
    ),
    # Commit
    Bug(
        "an unknown commit outcome is reported as a failure",
        "engine/commit.py",
        "            batch.sent = _Sent(witness, decided.outcomes)\n",
        "            batch.sent = None\n",
        (OUTCOMES,),
    ),
    Bug(
        "an unknown commit is not looked up",
        "engine/commit.py",
        "        if sent is not None and await self._store.contains(sent.witness, session):\n",
        "        if sent is not None and False:\n",
        (OUTCOMES,),
    ),
    Bug(
        "an unknown commit is taken for done",
        "engine/commit.py",
        "        if sent is not None and await self._store.contains(sent.witness, session):\n",
        "        if sent is not None:\n",
        (OUTCOMES,),
    ),
    Bug(
        "a cancel leaves the transaction open",
        "engine/transactions.py",
        "                self._reaper.end(session, left)\n",
        "                pass\n",
        (OUTCOMES, CONCURRENCY),
    ),
    Bug(
        "a refusal is decided without looking up its key",
        "engine/commit.py",
        "        if decided.refusals and not with_keys:\n",
        "        if False:\n",
        (OPERATIONS,),
    ),
    Bug(
        "a retry does not look up keys",
        "engine/commit.py",
        "with_keys = batch.has_met_duplicate or batch.sent is not None or lately",
        "with_keys = lately",
        (OPERATIONS,),
    ),
    Bug(
        "one refused document fails its whole batch",
        "engine/commit.py",
        "            parts = [number < len(requests) // 2 for number in range(len(requests))]\n",
        "            parts = []\n",
        (CONCURRENCY, OUTCOMES),
    ),
    Bug(
        "all callers of a batch get one error object",
        "engine/commit.py",
        "return [_copy(failed) for _ in requests]",
        "return [failed for _ in requests]",
        (OUTCOMES, CONCURRENCY, LANES),
    ),
    Bug(
        "a commit does not wait for a majority",
        "storage/database.py",
        'JOURNALED_MAJORITY: Final[WriteConcern] = WriteConcern("majority", j=True)',
        "JOURNALED_MAJORITY: Final[WriteConcern] = WriteConcern(1)",
        (READS,),
    ),
    Bug(
        "reads may see what is rolled back later",
        "storage/database.py",
        'MAJORITY: Final[ReadConcern] = ReadConcern("majority")',
        'MAJORITY: Final[ReadConcern] = ReadConcern("local")',
        (READS,),
    ),
    Bug(
        "a conflict is not retried",
        "engine/failures.py",
        "return isinstance(error, OperationFailure) and error.code == _WRITE_CONFLICT",
        "return False",
        (CONCURRENCY, OUTCOMES),
    ),
    Bug(
        "a lost connection is not retried",
        "engine/failures.py",
        "    return isinstance(error, PyMongoError) and (\n"
        "        error.has_error_label(_TRANSIENT)",
        "    return isinstance(error, PyMongoError) and False and (\n"
        "        error.has_error_label(_TRANSIENT)",
        (OUTCOMES,),
    ),
    Bug(
        "an error quotes the server's text",
        "engine/failures.py",
        'text = details.get("codeName") or f"code {error.code}"',
        "text, details = str(error), error.details",
        ("tests/integration/roles/test_runtime_role.py",),
    ),
    # Lanes
    Bug(
        "the queue has no limit",
        "engine/lanes.py",
        "        if waiting >= LONGEST_QUEUE:\n",
        "        if False:\n",
        (LANES,),
    ),
    Bug(
        "callers that come back at once miss the next batch",
        "engine/lanes.py",
        "                await asyncio.sleep(0)\n",
        "",
        (LANES,),
    ),
    Bug(
        "calls do not wait for room",
        "ledger.py",
        'waits = config.on_busy == "wait"',
        "waits = False",
        (CONCURRENCY,),
    ),
    Bug(
        "closing drops queued requests",
        "engine/lanes.py",
        "            await asyncio.wait(running)\n",
        "            return\n",
        (LANES, CONCURRENCY),
    ),
    Bug(
        "a request cancelled in the queue is charged",
        "engine/lanes.py",
        "            if waiting.answer.done():\n",
        "            if False:\n",
        (LANES,),
    ),
    Bug(
        "a caller in flight is told that nothing was written",
        "engine/lanes.py",
        "            if self.in_flight\n",
        "            if False\n",
        (LANES, OUTCOMES),
    ),
    Bug(
        "a user's requests meet on different lanes",
        "engine/lanes.py",
        "        if staying is not None:\n            return *staying, waiting\n",
        "",
        (LANES,),
    ),
    Bug(
        "a caller's own deadline limits the batch",
        "engine/lanes.py",
        "self.task = contextvars.Context().run(tasks.start, self._run())",
        "self.task = tasks.start(self._run())",
        (LANES, CONCURRENCY, OUTCOMES),
    ),
    # The ledger's settings
    Bug(
        "a newer version's names are not added to the settings",
        "storage/settings.py",
        "missing = {} if row is None else settings.missing_in(row)",
        "missing = {}",
        (SETTINGS,),
    ),
    Bug(
        "of two processes that add different names, the later wins",
        "storage/settings.py",
        "update_one(unchanged | absent, _extension(missing))",
        "update_one(unchanged, _extension(missing))",
        (SETTINGS,),
    ),
    Bug(
        "the form of the settings falls with an older library",
        "storage/settings.py",
        '{"$max": {"version": FORM, "lowestWriter": LOWEST_WRITER}}',
        '{"$set": {"version": FORM, "lowestWriter": LOWEST_WRITER}}',
        (SETTINGS,),
    ),
    Bug(
        "a new collection's name is guessed behind a prefix",
        "storage/settings.py",
        "if field not in stored and (has_prefix or own[field].default in stored.values()):",
        "if field not in stored and own[field].default in stored.values():",
        (COMMAND_SETTINGS,),
    ),
    Bug(
        "a page fails with the connection that it began on",
        "storage/latest_write.py",
        "except (ConnectionFailure, OperationFailure) as error:",
        "except OperationFailure as error:",
        (READS,),
    ),
    Bug(
        "a command with one effect is not repeated",
        "storage/database.py",
        "    except AutoReconnect:\n        return await run()",
        "    except AutoReconnect:\n        raise",
        (READS,),
    ),
    Bug(
        "a ledger with other decimal places opens",
        "storage/settings.py",
        "            if own != theirs:",
        "            if own != theirs and field != 'decimal_places':",
        (SETTINGS,),
    ),
    Bug(
        "ledgers may share their archives",
        "storage/settings.py",
        "            if kind is not None:",
        "            if kind is not None and 'archive' not in field and field != 'turns':",
        (SETTINGS,),
    ),
    Bug(
        "another ledger's newer settings stop this one",
        "storage/settings.py",
        "self._check_that_it_is_apart_from(row)",
        "self._check_that_it_is_apart_from(self.from_row(row).to_row())",
        (SETTINGS,),
    ),
    Bug(
        "two ledgers that share collections can be set up at once",
        "storage/settings.py",
        '"unique": True',
        '"unique": False',
        (SETTINGS,),
    ),
    Bug(
        "settings that could not be compared count as compared",
        "engine/opening.py",
        "        kept = await self._kept()\n",
        "        self.is_done = True\n        kept = await self._kept()\n",
        (SETTINGS,),
    ),
    Bug(
        "an operation in a session ignores the settings",
        "ledger.py",
        "lambda: self._after_opening(self._committer.commit_in, request, session)",
        "lambda: self._committer.commit_in(request, session)",
        (SETTINGS,),
    ),
    Bug(
        "a TTL index on the archive is overlooked",
        "maintenance/ttl_indexes.py",
        "        and not (kind in _EXPIRING and",
        "        and 'archive' not in kind\n        and not (kind in _EXPIRING and",
        (TTL_INDEXES,),
    ),
    Bug(
        "a TTL index on another date field is accepted for keys",
        "maintenance/ttl_indexes.py",
        'kind in _EXPIRING and list(index["key"].items()) == _OWN_KEYS',
        "kind in _EXPIRING",
        (TTL_INDEXES,),
    ),
    # Around it
    Bug(
        "an account opens in a tier although no tiers are configured",
        "core/operations/create_user.py",
        "        if tier is not None:\n            policy.membership.level(tier)\n",
        "        if tier is not None and policy.membership.levels:\n"
        "            policy.membership.level(tier)\n",
        (RULES,),
    ),
    Bug(
        "if a key appears twice, the last price counts",
        "config/json_text.py",
        "            if key in found:",
        "            if False:",
        (CONFIG,),
    ),
    Bug(
        "a number is written out as its nearest float",
        "config/json_text.py",
        "return nearest if Fraction(repr(nearest)) == price else _exact_decimal(price)",
        "return nearest",
        (CONFIG,),
    ),
    Bug(
        "keys are checked although idempotency is disabled",
        "ledger.py",
        '"key": key if self._config.idempotency.enabled else None,',
        '"key": key,',
        (OPERATIONS,),
    ),
    Bug(
        "calls have no deadline",
        "ledger.py",
        "return await self._deadlines.keep(work, self._config.operation_timeout_seconds)",
        "return await work",
        (OUTCOMES, SESSIONS),
    ),
    Bug(
        "half an operation can be committed",
        "engine/sessions.py",
        "                guard.abort(error)\n",
        "                pass\n",
        (HALVES,),
    ),
    Bug(
        "half an operation can be committed while its call still runs",
        "engine/sessions.py",
        "        if self._is_in_use:\n",
        "        if False:\n",
        (HALVES,),
    ),
    Bug(
        "half an operation is carried out after the application's abort",
        "storage/unit_of_work.py",
        "{**command, **fields_of(session)}",
        "command",
        (HALVES,),
    ),
    Bug(
        "half an operation locks its user until the application ends its session",
        "engine/sessions.py",
        "                    self._reaper.abort(transaction)\n",
        "                    pass\n",
        (HALVES,),
    ),
    Bug(
        "a call to end a session is never given up",
        "engine/session_reaper.py",
        "    with pymongo.timeout(seconds):\n",
        "    if seconds:\n",
        (REAPER,),
    ),
    Bug(
        "a busy server gets another call before the last one has ended",
        "engine/session_reaper.py",
        "    with pymongo.timeout(seconds):\n        await ask()\n",
        "    await asyncio.wait({asyncio.ensure_future(ask())}, timeout=seconds)\n"
        "    raise asyncio.TimeoutError\n",
        (REAPER,),
    ),
    Bug(
        "a strict client leaves its transaction open",
        "engine/session_reaper.py",
        "if isinstance(error, OperationFailure) and error.code == _NOT_IN_THE_STABLE_API:",
        "if False:",
        (HALVES,),
    ),
    Bug(
        "an observer that raises fails the charge",
        "engine/observer.py",
        "        except (Exception, asyncio.CancelledError) as error:\n",
        "        except ZeroDivisionError as error:\n",
        (OBSERVER,),
    ),
    Bug(
        "each failure of an observer is logged",
        "engine/observer.py",
        "            self._has_failed = True\n",
        "            self._has_failed = False\n",
        (OBSERVER,),
    ),
    Bug(
        "work that was abandoned commits",
        "engine/attempt.py",
        "        if self.stage is Stage.ABANDONED:\n",
        "        if False:\n",
        (ATTEMPT,),
    ),
    Bug(
        "a conflict over the turn is one over a user",
        "engine/retries.py",
        "        if attempt.stage is Stage.TAKING_TURN:\n",
        "        if False:\n",
        (ATTEMPT,),
    ),
    Bug(
        "a frozen process stops all others",
        "engine/turns.py",
        "            self._stuck.begin(now)\n",
        "            pass\n",
        (TURNS,),
    ),
    Bug(
        "a user locked by a frozen process stops all others",
        "engine/retries.py",
        "        if not attempt.has_turn and not self._turns.are_stuck(now):\n",
        "        if not attempt.has_turn:\n",
        (TURNS,),
    ),
    Bug(
        "turns go in no order",
        "engine/tickets.py",
        "        return max(self.number - 1 - self._served, 0)\n",
        "        return 0\n",
        (UNIT_TURNS, TURNS),
    ),
    Bug(
        "a process that died before its turn stops all others",
        "engine/tickets.py",
        "        if still >= min(self.ahead * each, _LONGEST_PATIENCE_SECONDS):\n",
        "        if not self.ahead:\n",
        (UNIT_TURNS, TURNS),
    ),
    Bug(
        "a batch that waits for a held user keeps the turn from others",
        "engine/commit.py",
        "                await self._turn_taker.pass_on(batch.ticket)\n",
        "                pass\n",
        (TURNS,),
    ),
    Bug(
        "turns end while they are needed",
        "engine/turns.py",
        "            self._conflicts.prolong(now)\n",
        "            pass\n",
        (UNIT_TURNS,),
    ),
    Bug(
        "a user that is held again and again delays all others each time",
        "engine/lanes.py",
        "        return held is not None and held.is_on(now)\n",
        "        return False\n",
        (LANES,),
    ),
    Bug(
        "a user in a shared lane gets a second lane",
        "engine/lanes.py",
        "            return False  # it meets one lane at a time\n",
        "            pass\n",
        (LANES,),
    ),
    Bug(
        "requests that join a batch get its older deadline",
        "engine/commit.py",
        "        self.deadline = max(self.deadline, more.deadline)\n",
        "        pass\n",
        (TURNS,),
    ),
    Bug(
        "the application's own commit is not read",
        "engine/sessions.py",
        "            latest_write.was(self._session)\n",
        "            pass\n",
        (READS,),
    ),
    Bug(
        "another client's session is used",
        "engine/sessions.py",
        "if session.client is not self._client:",
        "if False:",
        (SESSIONS, BAD_INPUT),
    ),
    Bug(
        "a page ends one row early",
        "storage/reads.py",
        "limit=query.limit + 1 - found,",
        "limit=query.limit - found,",
        (OPERATIONS,),
    ),
    Bug(
        "a page shows another user's rows",
        "storage/pages.py",
        'self.filter: Raw = {"userId": self.user_id}',
        "self.filter: Raw = {}",
        (OPERATIONS,),
    ),
    Bug(
        "the end date is included",
        "storage/pages.py",
        'created_at["$lt"] = check_moment("end_date", end_date)',
        'created_at["$lte"] = check_moment("end_date", end_date)',
        (OPERATIONS,),
    ),
    Bug(
        "a repr shows metadata",
        "core/decision.py",
        "metadata: Mapping[str, Any] | None = field(default=None, repr=False)",
        "metadata: Mapping[str, Any] | None = field(default=None)",
        (SECRECY,),
    ),
    Bug(
        "the driver's log shows what a job reads",
        "storage/database.py",
        "with Unlogged():\n            found: list[Any] = await self._driver.to_list(",
        "if True:\n            found: list[Any] = await self._driver.to_list(",
        (SECRECY,),
    ),
    Bug(
        "the driver's log shows documents",
        "storage/redaction.py",
        "        if _is_unlogged.get():\n",
        "        if False:\n",
        ("tests/unit/test_log_redaction.py", SECRECY),
    ),
    # Erasures
    Bug(
        "an old key of an erased account is replayed",
        "storage/unit_of_work.py",
        'd["_id"]: remembered_from(d) for d in await self._without_erased(live, session)',
        'd["_id"]: remembered_from(d) for d in live',
        (HALF_ERASED,),
    ),
    Bug(
        "a charge of an erased account is refunded to its successor",
        "storage/unit_of_work.py",
        "charges = await self._without_erased(charges, session)",
        "pass",
        (HALF_ERASED,),
    ),
    Bug(
        "history shows the rows of an erased account",
        "storage/reads.py",
        "query.leave_out_until(until)",
        "pass",
        (HALF_ERASED,),
    ),
    Bug(
        "a reopened account starts by a slow clock",
        "core/state.py",
        "return max(now, until + _MILLISECOND)",
        "return now",
        (ERASE,),
    ),
    Bug(
        "keys without transactions are not erased",
        "maintenance/erased_rows.py",
        "self.has_rows([*collections, self._names.idempotency_records], {}, session)",
        "self.has_rows(collections, {}, session)",
        (ERASE,),
    ),
    Bug(
        "a page is not read from one snapshot",
        "storage/latest_write.py",
        "async with self._client.start_session(snapshot=True) as own:",
        "async with self.seen_by(None) as own:",
        (READS,),
    ),
    Bug(
        "verification takes the order of time for the order of seq",
        "maintenance/verification/examination.py",
        "                    raise _UnsortedError\n",
        "                    pass\n",
        (VERIFY_COST,),
    ),
    Bug(
        "verification of a user reads everybody's records",
        "maintenance/verification/records.py",
        "        return query, _BY_USER\n",
        "        return query, _BY_ID\n",
        (VERIFY_COST,),
    ),
    Bug(
        "a report of a long period reads the archive through the index",
        "maintenance/usage/reading.py",
        'return {"$nor": [{"$nor": [query]}]}',
        "return query",
        (REPORT_COST,),
    ),
    Bug(
        "a report tells rows without a date only if it scans",
        "maintenance/usage/reading.py",
        'UNDATED: Final[Raw] = of_other_types("createdAt", DATE)',
        'UNDATED: Final[Raw] = {"createdAt": {"$exists": False}}',
        (REPORT_COST, "tests/integration/test_report.py"),
    ),
    Bug(
        "verification applies one TTL to all keys",
        "maintenance/verification/reading.py",
        "if isinstance(stored, datetime):",
        "if False:",
        (VERIFY,),
    ),
    # Paid requests
    Bug(
        "another request replays a paid one: the parts of a fingerprint run together",
        "integrations/fastapi/fingerprints.py",
        '        digest.update(len(part).to_bytes(8, "big"))\n',
        "",
        (FINGERPRINTS,),
    ),
    Bug(
        "another request replays a paid one: a boundary in a file counts for nothing",
        "integrations/fastapi/fingerprints.py",
        "is_regular = self._tail == _DELIMITER_START and self._follows_delimiter()",
        "is_regular = True",
        (FINGERPRINTS,),
    ),
    Bug(
        "the fingerprint uses the decoded path",
        "integrations/fastapi/fingerprints.py",
        'scope.get("raw_path") or scope["path"]',
        'scope["path"]',
        (BODIES,),
    ),
    Bug(
        "a large body is read before the account is checked",
        "integrations/fastapi/bodies.py",
        "            await check()\n        kept",
        "            pass\n        kept",
        (BODIES,),
    ),
    Bug(
        "a retry is refused for lack of the credits it has already paid",
        "integrations/fastapi/stored_requests.py",
        'if await self._keep(self._collection.find_one(query, {"_id": 1})) is not None:',
        "if False:",
        (BODIES,),
    ),
    Bug(
        "a body has no limit",
        "integrations/fastapi/bodies.py",
        "if max(self._size, announced) > self._largest:",
        "if announced > self._largest:",
        (BODIES,),
    ),
    Bug(
        "a charge is refunded in full after a partial refund",
        "integrations/fastapi/charges.py",
        "charge.cost - refunded,",
        "charge.cost,",
        (PAID,),
    ),
    Bug(
        "a damaged account's request counts as settled",
        "integrations/fastapi/paid_requests.py",
        "            charge = await self._charges.find(run)\n        except (Storage",
        "            raise\n        except (Storage",
        (PAID,),
    ),
    Bug(
        "a settlement whose outcome is unknown is a refusal",
        "integrations/fastapi/paid_requests.py",
        "except (StorageError, CommitOutcomeUnknownError):\n            raise",
        "except StorageError:\n            raise",
        (PAID,),
    ),
    Bug(
        "a copied configuration keeps the prices that were replaced",
        "config/parts.py",
        "if not update:\n            return super().model_copy(deep=deep)",
        "if True:\n            return super().model_copy(update=update, deep=deep)",
        (CONFIG,),
    ),
    Bug(
        "all processes retry in step",
        "config/configuration.py",
        "return draw(0.0, self.longest_delay_seconds(failures))",
        "return self.longest_delay_seconds(failures)",
        (CONFIG,),
    ),
    Bug(
        "an unknown outcome is reported as a failure that wrote nothing",
        "errors.py",
        "class CommitOutcomeUnknownError(CreditError):",
        "class CommitOutcomeUnknownError(CreditError, PyMongoError):",
        (ERRORS,),
    ),
    Bug(
        "a charge on an account damaged later is forgotten",
        "integrations/fastapi/paid_requests.py",
        "            await self._charges.refund(charge)\n        await self._release(run)",
        "            with contextlib.suppress(CreditError):\n"
        "                await self._charges.refund(charge)\n        await self._release(run)",
        (PAID,),
    ),
    Bug(
        "a route charges twice",
        "integrations/fastapi/routes.py",
        "if len(charges) > 1:",
        "if False:",
        (PARTS,),
    ),
    # Other users of the machine
    Bug(
        "rows are deleted although their file was replaced",
        "maintenance/archive/files.py",
        "if not (is_same and self._directory.holds(file.name, opened)):",
        "if not is_same:",
        (FILES,),
    ),
    Bug(
        "the BSON file is removed before the Parquet file was verified",
        "maintenance/archive/files.py",
        "if digest_of(written) != file.sha256 or not self._opened.holds(target, written):",
        "if not self._opened.holds(target, written):",
        (FILES,),
    ),
    Bug(
        "a manifest leads to any file",
        "maintenance/archive/manifests.py",
        "is_own = manifest_of(file.name) == str(manifest_id)",
        "is_own = True",
        (FILES,),
    ),
    Bug(
        "a new file may be another user's link",
        "private_files.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY",
        "os.O_RDWR | os.O_CREAT | _BINARY",
        (FILES,),
    ),
    Bug(
        "an export removes a running export's unfinished file",
        "maintenance/export/files.py",
        "            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        (EXPORT,),
    ),
    Bug(
        "a keeper accepts a directory that already exists",
        "local/keeper.py",
        "os.mkdir(directory, 0o700)",
        "os.makedirs(directory, exist_ok=True)",
        (LOCAL,),
    ),
    Bug(
        "the server's log is written through a link",
        "local/keeper.py",
        " | os.O_CREAT | os.O_NOFOLLOW",
        " | os.O_CREAT",
        (LOCAL,),
    ),
    Bug(
        "a task's repr shows its result",
        "engine/tasks.py",
        "return _Task(work, loop=asyncio.get_running_loop())",
        "return asyncio.get_running_loop().create_task(work)",
        (SECRECY,),
    ),
)
