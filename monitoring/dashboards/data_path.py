"""Dashboard "Data path": the way from the store to the batch, and its bottleneck."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import state
from monitoring.dashboards.frame import Row, assemble
from monitoring.dashboards.panels import Text, curves, number
from monitoring.dashboards.queries import RUN, Query, increase, percentiles, rate, rule, series, smallest, spread, total


def build(runbook: str) -> Dashboard:
    """Builds the dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-data-path",
        "Data path",
        "From the store to the batch: whether training waits for data, and where the bottleneck is.",
        [_state(), _waiting(), _store(), _cache(), _decoding()],
        runbook,
    )


def _state() -> Row:
    starving = number(
        Text(
            "Starving ranks",
            "Ranks that waited for data for more than the fraction watchdog.starving_share of the last watchdog.starving_seconds. None is "
            "good.",
            "The rows below show the bottleneck. A full queue means that it is not the data.",
            "Data starves",
        ),
        Query(total(series("data_starving", RUN)), "{{run}}"),
        "none",
        ((None, "green"), (1, "red")),
        decimals=0,
    )
    ready = number(
        Text(
            "Batches ready, worst rank",
            "Batches that were ready when the training loop asked for one, on the rank with the fewest. Near data.ready_batches is good.",
            "0: the loader of that rank is behind, and the training loop waits for it.",
            "Data starves",
        ),
        Query(smallest(series("queue_depth", RUN)), "{{run}}"),
        "none",
        ((None, "orange"), (1, "green")),
        decimals=0,
    )
    cached = number(
        Text(
            "Found in the cache",
            "Fraction of the samples that were in the node's cache, over 5 minutes. It should grow to 100 % where the data set fits.",
            "It stays low with evictions (row Cache): raise data.cache_gb. Without a cache, or without samples, there is no value.",
            "Data starves",
        ),
        Query(rule("cache_hits:ratio"), "{{run}}"),
        "percentunit",
        ((None, "blue"),),
        limits=(0, 1),
        decimals=0,
        words={"nan": ("no samples", "blue")},
        empty="no samples",
    )
    retries = number(
        Text(
            "Requests repeated",
            "Fraction of the requests to the store that had to be repeated, over 5 minutes; about 100 % where it answers nothing. "
            "A few percent are usual for a store that asks to slow down.",
            "More: see the causes in the row Store. The run ends when the retries of one request are used up.",
            "The store fails",
        ),
        Query(rule("store_retries:ratio"), "{{run}}"),
        "percentunit",
        ((None, "green"), (0.01, "orange"), (0.05, "red")),
        decimals=1,
        words={"nan": ("no requests", "blue")},
        empty="no requests",
    )
    bad = number(
        Text(
            "Bad samples",
            "Fraction of the images of the last hour that could not be used and were replaced. 0 is good; above data.max_bad_fraction "
            "the run ends.",
            "The row Decoding shows the causes, and RUN/quarantine.jsonl names each sample.",
            "Bad samples",
        ),
        Query(rule("bad_samples:ratio"), "{{run}}"),
        "percentunit",
        ((None, "green"), (1e-6, "orange"), (1e-4, "red")),
        words={"nan": ("no samples", "blue")},
        empty="no samples",
    )
    numbers = [
        state.ranks_answering(),
        state.data_wait(),
        starving,
        ready,
        cached,
        retries,
        bad,
        state.firing_alerts(),
    ]
    return Row("State of the data", numbers)


def _waiting() -> Row:
    wait = curves(
        Text(
            "Fraction of the time waited",
            "Fraction of the time that a rank waits for its batch: the rank that waits longest, the median, and the shortest. Near 0 is "
            "good.",
            "All high: the store or the cores limit every rank. One high: the node of that rank.",
            "Data starves",
        ),
        spread(rate("data_wait_seconds_total"), "fraction"),
        "percentunit",
        steps=((0.1, "orange"), (0.5, "red")),
        limits=(0, 1),
    )
    queue = curves(
        Text(
            "Batches ready",
            "Batches that were ready when the training loop asked for one: fullest, median, emptiest rank. Full queues are good.",
            "Empty everywhere: the rows below show whether the store or decoding is slow. Full and yet waiting: the data of another rank.",
            "Data starves",
        ),
        spread(series("queue_depth"), "queue"),
        "none",
    )
    supply = curves(
        Text(
            "Images decoded and trained on",
            "Images per second that the loaders decode and that the ranks train on, all chosen ranks. Equal once the queues are full is "
            "good.",
            "Decoded falls first: the data path is the limit. Both fall together with full queues: training is the limit.",
            "Data starves",
        ),
        [Query(total(rate("decoded_images_total")), "decoded ({{run}})"), Query(total(rate("images_total")), "trained on ({{run}})")],
        "short",
    )
    return Row("Waiting for data", [wait, queue, supply])


def _store() -> Row:
    latency = curves(
        Text(
            "Duration of a request",
            "Duration of requests to the store, to the last byte: median and tails over the chosen ranks. Constant is good.",
            "It grows with the number of requests: the store is at its limit, ask its operators. Only the tails grow: one slow server.",
            "The store fails",
        ),
        percentiles("store_request_seconds"),
        "s",
    )
    busy = rate("store_request_seconds_sum")
    flight = curves(
        Text(
            "Concurrent requests",
            "Mean number of requests of a rank that are under way: busiest, median, idlest rank. It is at most data.requests.",
            "Near data.requests with empty queues: raise data.requests and data.ready_batches.",
            "Data starves",
        ),
        spread(busy, "rank"),
        "none",
    )
    count = curves(
        Text(
            "Requests",
            "Requests to the store per second, all chosen ranks. It should fall as the cache fills.",
            "0 with empty queues: see the retries. Many, from a store that bills requests: a larger cache reads larger ranges.",
            "The store fails",
        ),
        [Query(total(rate("store_request_seconds_count")), "{{run}}")],
        "reqps",
    )
    retries = curves(
        Text(
            "Retries by cause",
            "Requests per second that were repeated, by cause, stacked. throttled: the store asks to slow down; server_error, timeout, "
            "connection: the store or the network fails; short: an answer broke off. None is good.",
            "Throttled: lower data.requests, or ask the store's operators for more. Other causes: repair the store while the run retries.",
            "The store fails",
        ),
        [Query(f"sum by (cause) ({rate('store_retries_total')})", "{{cause}}")],
        "reqps",
        width=12,
        stacked=True,
    )
    read = curves(
        Text(
            "Bytes read",
            "Bytes of shards read per second, from the store and from the nodes' caches, stacked, all chosen ranks.",
            "With a cache, the bytes from the store should fall in the first epoch. If they do not, the cache is too small.",
            "Data starves",
        ),
        [Query(f"sum by (source) ({rate('read_bytes_total')})", "{{source}}")],
        "binBps",
        width=12,
        stacked=True,
    )
    return Row("Store", [latency, flight, count, retries, read])


def _cache() -> Row:
    found = curves(
        Text(
            "Cache hits and misses",
            "Samples per second that were found in the node's cache, and that were not, stacked, all chosen ranks. Hits are good.",
            "As many misses in the second epoch: the data set does not fit. `python launch/simulate.py` finds a size that does.",
            "Data starves",
        ),
        [Query(f"sum({rate('cache_hits_total')})", "found"), Query(f"sum({rate('cache_misses_total')})", "not found")],
        "short",
        stacked=True,
        colours={"found": "green", "not found": "orange"},
    )
    moves = curves(
        Text(
            "Shards downloaded and removed",
            "Shards per second that are downloaded into the nodes' caches, and removed to make room. None once the data set is cached is "
            "good.",
            "Removed as fast as downloaded, all the time: every epoch reads the store anew, raise data.cache_gb.",
            "Data starves",
        ),
        [
            Query(total(rate("cache_downloads_total")), "downloaded ({{run}})"),
            Query(total(rate("cache_evictions_total")), "removed ({{run}})"),
        ],
        "short",
    )
    faults = curves(
        Text(
            "Cache failures",
            "Shards that could not be cached, and samples whose cached bytes were wrong and were read again from the store. None is good.",
            "Not cached: the store fails, or the disk is full. Wrong bytes: the disk is faulty, drain that node.",
            "The store fails",
        ),
        [
            Query(total(increase("cache_failures_total")), "not cached ({{run}})"),
            Query(total(increase("cache_repairs_total")), "wrong bytes ({{run}})"),
        ],
        "short",
        bars=True,
    )
    size = curves(
        Text(
            "Size of the cache",
            "Bytes in a node's cache, which its ranks share: the five fullest nodes. It rises to data.cache_gb and never above it.",
            "It stays at the limit while shards are removed: raise data.cache_gb.",
            "Data starves",
        ),
        [Query(f"topk(5, max by (run, node) ({series('cache_bytes')}))", "{{node}} ({{run}})")],
        "bytes",
        width=24,
    )
    return Row("Cache of the node", [found, moves, faults, size])


def _decoding() -> Row:
    # a rank that has decoded nothing has no time per image
    each = f"{rate('decode_seconds_total')} / ({rate('decoded_images_total')} > 0)"
    cost = curves(
        Text(
            "Time to decode an image",
            "CPU time per image: slowest, median, fastest rank. A few milliseconds are good.",
            "High everywhere: build the shards at the size of training. High on one rank: its CPU is slow or shared.",
            "Data starves",
        ),
        spread(each, "rank"),
        "s",
    )
    cores = curves(
        Text(
            "Cores that decode",
            "CPU cores that the decoding of a rank keeps busy: busiest, median, idlest rank. It is at most data.threads.",
            "Near data.threads with empty queues: raise data.threads, or give the ranks more cores.",
            "Data starves",
        ),
        spread(rate("decode_seconds_total"), "rank"),
        "none",
    )
    bad = curves(
        Text(
            "Bad samples by cause",
            "Samples that could not be used, by cause, stacked. digest: the bytes are not those that were stored; undecodable: the "
            "picture itself "
            "is damaged; unavailable: its shard could not be read. None is good.",
            "digest: `python -m shards verify URL` reports how many and where. RUN/quarantine.jsonl names each sample.",
            "Bad samples",
        ),
        [Query(f"sum by (cause) ({increase('bad_samples_total')})", "{{cause}}")],
        "short",
        stacked=True,
        bars=True,
    )
    return Row("Decoding", [cost, cores, bad])
