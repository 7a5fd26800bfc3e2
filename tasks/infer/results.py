"""Results of shards, fetched from the store a few ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from tasks.infer.shards import Shard, ShardStore
from tasks.settings import settings
from tasks.store import ObjectStore

RESULTS_AHEAD = 4


def shard_results(store: ObjectStore, shards: Sequence[Shard]) -> Iterator[tuple[Shard, bytes]]:
    """The shards' stored results in the given order, fetched a few ahead."""
    sink = ShardStore(store, settings().root)
    coming = iter(shards)
    waiting: deque[tuple[Shard, Future[bytes]]] = deque()
    with ThreadPoolExecutor(RESULTS_AHEAD, thread_name_prefix="chipline-fetch") as pool:
        try:
            for shard in islice(coming, RESULTS_AHEAD):
                waiting.append((shard, pool.submit(sink.get, shard)))
            while waiting:
                shard, future = waiting.popleft()
                data = future.result()
                for following in islice(coming, 1):
                    waiting.append((following, pool.submit(sink.get, following)))
                yield shard, data
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
