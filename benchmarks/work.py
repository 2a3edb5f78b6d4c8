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
from benchmarks.results import NETWORKS, Network, Place, Results, Run
from benchmarks.servers import Servers

__all__ = ["Works"]

# A transaction a charge that is given as many callers as serve it best, not all at once.
_AT_A_TIME: Final = 64
_PROCESSES: Final = 4
_CALLERS_OF_A_PROCESS: Final = 100
# With few callers, a larger pool has idle connections and nothing else.
_SMALL_POOL_CALLERS: Final = 16

Tell: TypeAlias = Callable[[str], None]


class Works:
    """Does the works, and keeps the results."""

    def __init__(self, options: Options, servers: Servers, tell: Tell) -> None:
        """``tell`` is called with each line of the progress."""
        self.results = Results()
        self._options = options
        self._servers = servers
        self._tell = tell
        # By network, so that few replica sets are started, and what leaves most behind last.
        self._steps: list[tuple[str, Network, Callable[[Network], Awaitable[None]]]] = [
            ("latency", Network(1), self._latency),
            ("batches", Network(1), self._batches),
            ("one-user", Network(1), self._one_user),
            ("processes", Network(1), self._processes),
            *(("callers", network, self._callers) for network in NETWORKS),
            *(("lanes", network, self._lanes) for network in NETWORKS),
            ("medici", Network(3), self._medici),
            ("growth", Network(1), self._growth),
        ]

    async def do(self) -> None:
        """Do the works that were asked for."""
        steps = [step for step in self._steps if step[0] in self._options.only]
        steps.sort(key=lambda step: (step[0] == "growth", NETWORKS.index(step[1])))
        for name, network, work in steps:
            self._tell(f"{name}: {WORKS[name]}; {network.title}")
            await work(network)

    # Works

    async def _callers(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
        for callers in self._options.callers:
            at_a_time = _AT_A_TIME if callers > _AT_A_TIME else 0
            peers: list[Peer] = [
                LedgerPeer(uri),
                ByHandPeer(uri, at_a_time),
                BeaniePeer(uri, at_a_time),
            ]
            if network.members == 1:  # its counterpart with one server
                pools = self._options.pools
                pools = pools[:1] if callers <= _SMALL_POOL_CALLERS else pools
                peers += await self._postgresql(network, pools)
            await self._compare(Place("callers", callers, network=network), peers)

    async def _lanes(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
        for callers in self._options.callers:
            peers: list[Peer] = [LedgerPeer(uri, lanes=lanes) for lanes in (0, 1, 2, 4)]
            await self._compare(Place("lanes", callers, network=network), peers)

    async def _batches(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
        await self._compare(Place("batches"), [LedgerPeer(uri), BatchesByHandPeer(uri)])

    async def _one_user(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
        pools = await self._postgresql(network, self._options.pools)
        peers: list[Peer] = [LedgerPeer(uri), *pools]
        await self._compare(Place("one-user", users="one user"), peers, user_ids(1))

    async def _medici(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
        # As its documentation shows it, with a thousand callers at once, it answers hardly any.
        at_best = MediciPeer(uri, snapshots=False, at_a_time=_AT_A_TIME)
        await self._compare(Place("medici", network=network), [LedgerPeer(uri), at_best])

    async def _latency(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
        async with AsyncMongoClient[dict[str, Any]](uri, tz_aware=True) as client:
            for _ in range(self._options.rounds):
                seconds = await latency.measure(client, self._options.latency_charges)
                ours, by_hand = (latency.median_ms(times) for times in seconds)
                self.results.latencies.append((ours, by_hand))
                self.results.checked += 2
                self._tell(f"   {ours:.2f} ms, by hand {by_hand:.2f} ms")

    async def _processes(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
        together_callers = _PROCESSES * _CALLERS_OF_A_PROCESS
        for users, count, hot_share in (("one user", 1, 0.0), ("a tenth on one user", 1001, 0.1)):
            place = Place("processes", together_callers, users)
            load = self._load(_CALLERS_OF_A_PROCESS, user_ids(count), hot_share)
            alone = self._load(together_callers, load.users, hot_share)
            for _ in range(self._options.rounds):
                await self._run_processes(place, LedgerPeer(uri), load)
                await self._run(place, _InOneProcess(uri), alone)

    async def _growth(self, network: Network) -> None:
        uri = await self._servers.mongodb(network)
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
                    pairs = [(young, "10,000 charges before"), (grown, f"{rows:,} charges before")]
                    for peer, users in pairs if number % 2 == 0 else reversed(pairs):
                        await self._charge_so_many(peer, Place("growth", users=users))

    # Parts of works

    def _load(self, callers: int, users: tuple[str, ...], hot_share: float = 0.0) -> Load:
        seconds, warm_up = self._options.seconds, self._options.warm_up_seconds
        return Load(callers, users, seconds, warm_up, hot_share)

    async def _postgresql(self, network: Network, pools: Sequence[int]) -> list[PostgresPeer]:
        """One peer a size of the pool; none if PostgreSQL cannot be measured here."""
        if PostgresPeer.kind in self.results.unavailable:
            return []
        try:
            connection = await self._servers.postgresql(network.delay_ms)
        except PeerUnavailableError as reason:
            self._skip(PostgresPeer.kind, reason)
            return []
        return [PostgresPeer(connection, size) for size in pools]

    async def _compare(
        self, place: Place, peers: Sequence[Peer], users: tuple[str, ...] | None = None
    ) -> None:
        load = self._load(place.callers, users or user_ids(1000))
        for round_number in range(self._options.rounds):
            first = round_number % len(peers)
            for peer in (*peers[first:], *peers[:first]):
                if peer.kind not in self.results.unavailable:
                    await self._run(place, peer, load)

    async def _run(self, place: Place, peer: Peer, load: Load) -> None:
        async with self._using(peer):
            await peer.start()
            await peer.prepare(load.users, OPENING_CREDITS)
            outcome = await peer.run(load)
            self._add(Run(place, peer.kind, peer.name, outcome))
            await peer.verify(outcome)
            self.results.checked += 1

    async def _run_processes(self, place: Place, peer: LedgerPeer, load: Load) -> None:
        async with self._using(peer):
            await peer.start()
            await peer.prepare(load.users, OPENING_CREDITS)
            parts = await run_processes(
                peer, load, processes=_PROCESSES, loop_name=self._options.loop
            )
            outcome = together(parts)
            self._add(Run(place, peer.kind, peer.name, outcome, tuple(parts)))
            await peer.verify(outcome)
            self.results.checked += 1

    @contextlib.asynccontextmanager
    async def _using(self, peer: Peer) -> AsyncIterator[None]:
        """Use the peer in this block, and note if it is unavailable, off, or fails."""
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
        users = user_ids(1000)
        await peer.prepare(users, OPENING_CREDITS)
        said = 0

        def tell(done: int) -> None:
            nonlocal said
            if done - said >= 500_000:
                said = done
                self._tell(f"   {done:,} of {rows:,} transactions are there")

        await fill(peer.database, users, OPENING_CREDITS, rows, tell)

    async def _charge_so_many(self, peer: LedgerPeer, place: Place) -> None:
        charges = self._options.growth_charges
        load = Load(1000, user_ids(1000), 0, 0, charges=max(charges // 5, 1))
        await peer.run(load)  # connections, and the pages that are in use
        base = await read_base(peer.database)
        outcome = await peer.run(Load(1000, load.users, 0, 0, charges=charges))
        self._add(Run(place, peer.kind, peer.name, outcome))
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
            f"   {run.place.title}: {run.peer}: {outcome.rate:,.0f}/s, "
            f"median {outcome.median_ms:.1f} ms, p99 {outcome.p99_ms:.1f} ms, "
            f"client {outcome.cpu_microseconds:.0f} µs a charge"
            f"{f', {errors} errors: {outcome.errors}' if errors else ''}"
        )


class _InOneProcess(LedgerPeer):
    """The library in one process with all the callers, for comparison with several."""

    kind = "one process"
