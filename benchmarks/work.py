"""The works: which peers get which loads. Peers take turns, so that noise meets all of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from pymongo import AsyncMongoClient

from benchmarks import latency
from benchmarks.growth import fill, read_base
from benchmarks.load import OPENING_CREDITS, Load, user_ids
from benchmarks.options import WORKS, Options
from benchmarks.peers import BooksAreOffError, Peer, PeerUnavailableError
from benchmarks.peers.batches_by_hand import BatchesByHandPeer
from benchmarks.peers.beanie_documents import BeaniePeer
from benchmarks.peers.by_hand import ByHandPeer
from benchmarks.peers.ledger import LedgerPeer
from benchmarks.peers.medici import MediciPeer
from benchmarks.peers.postgresql import PostgresPeer
from benchmarks.processes import run_processes, together
from benchmarks.results import Results, Run
from benchmarks.servers import Servers

__all__ = ["ORDER", "SWEEP", "Works", "sweep_name"]

ORDER: Final = (1, 2, 5, 6, 7, 9, 8, 3, 4)
"""Works with the same number of members stand together, and what leaves most behind last."""
SWEEP: Final = {"spread over 1000 users": 1000, "all on one user": 1}
"""The loads of work 9 by name: how many users there are."""
# A transaction a charge that is given as many callers as serve it best, not all at once.
_AT_A_TIME: Final = 64
_SPREAD: Final = 1000
_PROCESSES: Final = 4

Tell: TypeAlias = Callable[[str], None]


def sweep_name(callers: int, scenario: str) -> str:
    """What a load of work 9 is called."""
    return f"{callers} caller{'s' if callers > 1 else ''}, {scenario}"


class Works:
    """Does the works, and keeps what came of them."""

    def __init__(self, options: Options, servers: Servers, tell: Tell) -> None:
        """``tell`` hears how it goes, a line at a time."""
        self.results = Results()
        self._options = options
        self._servers = servers
        self._tell = tell
        self._ways: dict[int, Callable[[], Awaitable[None]]] = {
            1: self._against_postgresql_spread,
            2: self._against_postgresql_on_one_user,
            3: self._against_a_transaction_a_charge,
            4: self._against_medici_and_beanie,
            5: self._latency,
            6: lambda: self._processes(6, users=1, hot_share=0.0),
            7: lambda: self._processes(7, users=1 + _SPREAD, hot_share=0.1),
            8: self._growth,
            9: self._sweep,
        }

    async def do(self, number: int) -> None:
        """Do one work."""
        self._tell(f"{number}. {WORKS[number]}")
        await self._ways[number]()

    # Works

    async def _against_postgresql_spread(self) -> None:
        uri = await self._servers.mongodb(1)
        peers: list[Peer] = [LedgerPeer(uri), BatchesByHandPeer(uri), *await self._postgresql()]
        await self._compare(1, peers, self._load(1000, _SPREAD))

    async def _against_postgresql_on_one_user(self) -> None:
        uri = await self._servers.mongodb(1)
        peers: list[Peer] = [LedgerPeer(uri), *await self._postgresql()]
        await self._compare(2, peers, self._load(1000, 1))

    async def _against_a_transaction_a_charge(self) -> None:
        uri = await self._servers.mongodb(3)
        await self._compare(3, [LedgerPeer(uri), ByHandPeer(uri)], self._load(64, _SPREAD))

    async def _against_medici_and_beanie(self) -> None:
        uri = await self._servers.mongodb(3)
        peers: list[Peer] = [
            LedgerPeer(uri),
            # As their documentation shows them, and at their best.
            MediciPeer(uri),
            MediciPeer(uri, snapshots=False, at_a_time=_AT_A_TIME),
            BeaniePeer(uri),
            BeaniePeer(uri, at_a_time=_AT_A_TIME),
        ]
        await self._compare(4, peers, self._load(1000, _SPREAD))

    async def _latency(self) -> None:
        uri = await self._servers.mongodb(1)
        async with AsyncMongoClient[dict[str, Any]](uri, tz_aware=True) as client:
            for number in range(self._options.rounds):
                seconds = await latency.measure(client, self._options.latency_charges)
                ours, by_hand = (latency.median_ms(times) for times in seconds)
                self.results.latencies.append((ours, by_hand))
                self.results.checked += 2
                self._tell(f"   round {number + 1}: {ours:.2f} ms, by hand {by_hand:.2f} ms")

    async def _processes(self, number: int, *, users: int, hot_share: float) -> None:
        uri = await self._servers.mongodb(1)
        load = self._load(100, users, hot_share)
        for _ in range(self._options.rounds):
            peer = LedgerPeer(uri)
            async with self._using(peer):
                await peer.start()
                await peer.prepare(load.users, OPENING_CREDITS)
                parts = await run_processes(
                    peer, load, processes=_PROCESSES, loop_name=self._options.loop
                )
                whole = together(parts)
                self._add(Run(number, "", peer.kind, peer.name, whole, tuple(parts)))
                await peer.verify(whole)
                self.results.checked += 1

    async def _growth(self) -> None:
        uri = await self._servers.mongodb(1)
        rows = self._options.growth_rows
        grown = LedgerPeer(uri)
        async with self._using(grown):
            await grown.start()
            await self._fill(grown, rows)
            for number in range(self._options.rounds):
                young = LedgerPeer(uri)
                async with self._using(young):
                    await young.start()
                    await self._fill(young, 10_000)
                    pairs = [(young, "10,000 behind it"), (grown, f"{rows:,} behind it")]
                    for peer, scenario in pairs if number % 2 == 0 else reversed(pairs):
                        await self._charge_so_many(peer, scenario)

    async def _sweep(self) -> None:
        uri = await self._servers.mongodb(1)
        for scenario, users in SWEEP.items():
            for callers in self._options.sweep_callers:
                pools = await self._postgresql(1 if users > 1 else 2)
                peers: list[Peer] = [LedgerPeer(uri), ByHandPeer(uri), *pools]
                load = self._load(callers, users)
                await self._compare(9, peers, load, sweep_name(callers, scenario))

    # Parts of works

    def _load(self, callers: int, users: int, hot_share: float = 0.0) -> Load:
        return Load(
            callers=callers,
            users=user_ids(users),
            seconds=self._options.seconds,
            warm_up_seconds=self._options.warm_up_seconds,
            hot_share=hot_share,
        )

    async def _postgresql(self, best_of_work: int = 0) -> list[PostgresPeer]:
        """One peer a size of the pool, or the best of a work; none if PostgreSQL is not to be had.

        Without that work, all sizes.
        """
        if PostgresPeer.kind in self.results.unavailable:
            return []
        try:
            server = await self._servers.postgresql()
        except PeerUnavailableError as reason:
            self._skip(PostgresPeer.kind, reason)
            return []
        peers = [PostgresPeer(server, size) for size in self._options.pools]
        best = self.results.best(best_of_work, PostgresPeer.kind)
        return [peer for peer in peers if best is None or peer.name == best[0]]

    async def _compare(
        self, number: int, peers: Sequence[Peer], load: Load, scenario: str = ""
    ) -> None:
        for round_number in range(self._options.rounds):
            first = round_number % len(peers)
            for peer in (*peers[first:], *peers[:first]):
                if peer.kind in self.results.unavailable:
                    continue
                async with self._using(peer):
                    await peer.start()
                    await peer.prepare(load.users, OPENING_CREDITS)
                    outcome = await peer.run(load)
                    self._add(Run(number, scenario, peer.kind, peer.name, outcome))
                    await peer.verify(outcome)
                    self.results.checked += 1

    @contextlib.asynccontextmanager
    async def _using(self, peer: Peer) -> AsyncIterator[None]:
        """Start the peer in this block. Notes that it can't be had, or that its books are off."""
        try:
            yield
        except PeerUnavailableError as reason:
            self._skip(peer.kind, reason)
        except BooksAreOffError as error:
            self.results.off.append(f"{peer.name}: {error}")
            self._tell(f"   {peer.name}: THE BOOKS ARE OFF: {error}")
        except Exception as error:  # one peer's failure must not lose the figures of the others
            self.results.failed.append(f"{peer.name}: {error!r}")
            self._tell(f"   {peer.name}: FAILED: {error!r}")
        finally:
            await peer.stop()

    async def _fill(self, peer: LedgerPeer, rows: int) -> None:
        users = user_ids(_SPREAD)
        await peer.prepare(users, OPENING_CREDITS)
        said = 0

        def tell(done: int) -> None:
            nonlocal said
            if done - said >= 500_000:
                said = done
                self._tell(f"   {done:,} of {rows:,} transactions are there")

        await fill(peer.database, users, OPENING_CREDITS, rows, tell)

    async def _charge_so_many(self, peer: LedgerPeer, scenario: str) -> None:
        charges = self._options.growth_charges
        load = Load(1000, user_ids(_SPREAD), 0, 0, charges=max(charges // 5, 1))
        await peer.run(load)  # connections, and the pages that are in use
        base = await read_base(peer.database)
        outcome = await peer.run(Load(1000, load.users, 0, 0, charges=charges))
        self._add(Run(8, scenario, peer.kind, peer.name, outcome))
        await peer.verify_since(base, outcome)
        self.results.checked += 1

    def _skip(self, kind: str, reason: PeerUnavailableError) -> None:
        self.results.unavailable[kind] = f"{kind} skipped: {reason}"
        self._tell(f"   {kind} skipped: {reason}")

    def _add(self, run: Run) -> None:
        self.results.runs.append(run)
        outcome = run.outcome
        errors = sum(outcome.errors.values())
        self._tell(
            f"   {run.peer}{run.scenario and ', '}{run.scenario}: {outcome.rate:,.0f}/s, "
            f"median {outcome.median_ms:.1f} ms, p99 {outcome.p99_ms:.1f} ms, "
            f"client {outcome.cpu_microseconds:.0f} µs a charge"
            f"{f', {errors} errors: {outcome.errors}' if errors else ''}"
        )
