"""Dashboard "Data path": from the store to the batch, which part of the way is too narrow."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import state
from monitoring.dashboards.frame import Row, assemble
from monitoring.dashboards.panels import Text, curves, number
from monitoring.dashboards.queries import RUN, Query, increase, percentiles, rate, rule, series, smallest, spread, total


def build(runbook: str) -> Dashboard:
    """The dashboard; `runbook` is the address of docs/operations.md."""
    return assemble(
        "context-encoder-data-path",
        "Data path",
        "From the store to the batch: whether training waits for data, and which part of the way is too narrow.",
        [_state(), _waiting(), _store(), _cache(), _decoding()],
        runbook,
    )


def _state() -> Row:
    starving = number(
        Text(
            "Starving ranks",
            "Ranks that waited for their data for more than watchdog.starving_share of the last watchdog.starving_seconds. None is good.",
            "The rows below tell the part that is too narrow: a full queue means that it is not the data at all.",
            "Data starves",
        ),
        Query(total(series("data_starving", RUN)), "{{run}}"),
        "none",
        ((None, "green"), (1, "red")),
        decimals=0,
    )
    ready = number(
        Text(
            "Batches ready, least",
            "Batches that lay ready when the loop asked for one, on the rank with the fewest. Near data.ready_batches is good.",
            "0: that rank's loader is behind, and the loop waits for it.",
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
            "Share of the samples that were in the node's cache, over 5 minutes. Grows to 100 % where the data set fits.",
            "It stays low with evictions (row Cache): raise data.cache_gb. Without a cache, or without samples, there is no share.",
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
            "Requests tried again",
            "Of the attempts to read from the store, the share that had to be repeated, over 5 minutes; about 100 % where it answers "
            "nothing. A few in a hundred are usual for a store that asks to slow down.",
            "More: see the causes in the row Store. When the retries of one request are used up, the run ends.",
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
            "Share of the images of the last hour that could not be used and were replaced. 0 is good; past data.max_bad_fraction "
            "the run ends.",
            "The cause is in the row Decoding, each sample in RUN/quarantine.jsonl.",
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
            "Share of the time waited",
            "Share of its time that a rank waits for its batch: the rank that waits longest, the median one, the one that waits least.",
            "All high: the store or the cores are the limit of every rank. One high: that rank's node.",
            "Data starves",
        ),
        spread(rate("data_wait_seconds_total"), "share"),
        "percentunit",
        steps=((0.1, "orange"), (0.5, "red")),
        limits=(0, 1),
    )
    queue = curves(
        Text(
            "Batches ready",
            "Batches that lay ready when the loop asked: fullest, median, emptiest rank. Full queues are good.",
            "Empty everywhere: see below whether the store or decoding is slow. Full and yet waiting: it is another rank's data.",
            "Data starves",
        ),
        spread(series("queue_depth"), "queue"),
        "none",
    )
    supply = curves(
        Text(
            "Images decoded and trained on",
            "Images a second that the loaders decode and that the ranks train on, all chosen ranks. Equal, once the queues are full.",
            "Decoded falls first: the data path is the limit. Both fall together with full queues: it is training.",
            "Data starves",
        ),
        [Query(total(rate("decoded_images_total")), "decoded ({{run}})"), Query(total(rate("images_total")), "trained on ({{run}})")],
        "short",
    )
    return Row("Does training wait", [wait, queue, supply])


def _store() -> Row:
    latency = curves(
        Text(
            "Duration of a request",
            "How long requests to the store take until their last byte: median and tails over the chosen ranks.",
            "Grows with the number of requests: the store is at its limit, ask its operators. Tails alone: one slow server.",
            "The store fails",
        ),
        percentiles("store_request_seconds"),
        "s",
    )
    busy = rate("store_request_seconds_sum")
    flight = curves(
        Text(
            "Requests at a time",
            "Requests of a rank that are under way, on average: busiest, median, idlest rank. At most data.requests.",
            "Near data.requests with empty queues: raise data.requests and data.ready_batches.",
            "Data starves",
        ),
        spread(busy, "rank"),
        "none",
    )
    count = curves(
        Text(
            "Requests",
            "Requests to the store a second, all chosen ranks. Falls as the cache fills.",
            "0 with empty queues: see the retries. Stores bill by the request: larger ranges come with a larger cache.",
            "The store fails",
        ),
        [Query(total(rate("store_request_seconds_count")), "{{run}}")],
        "reqps",
    )
    retries = curves(
        Text(
            "Retries by cause",
            "Requests a second that were tried again, by cause, stacked. throttled: the store asks to slow down; server_error, timeout, "
            "connection: it or the network fails; short: an answer broke off.",
            "Throttled: fewer data.requests, or a word with the store's operators. Else repair the store; the run waits for data.retries.",
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
            "Bytes of shards a second from the store and from the nodes' caches, stacked, all chosen ranks.",
            "The store's share should fall in the first epoch where a cache is set; if it does not, the cache is too small.",
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
            "Samples by where they were",
            "Samples a second that the node's cache had, and that it had not, stacked, all chosen ranks.",
            "Misses that do not become fewer in the second epoch: the data set does not fit, `python -m shards simulate` says what would.",
            "Data starves",
        ),
        [Query(f"sum({rate('cache_hits_total')})", "found"), Query(f"sum({rate('cache_misses_total')})", "not found")],
        "short",
        stacked=True,
        colours={"found": "green", "not found": "orange"},
    )
    moves = curves(
        Text(
            "Shards brought in and removed",
            "Shards a second that come into the nodes' caches, and that make room. None once the data set is cached.",
            "Removed as fast as brought in, all the time: every epoch reads the store anew, raise data.cache_gb.",
            "Data starves",
        ),
        [
            Query(total(rate("cache_downloads_total")), "brought in ({{run}})"),
            Query(total(rate("cache_evictions_total")), "removed ({{run}})"),
        ],
        "short",
    )
    faults = curves(
        Text(
            "Faults of the cache",
            "Shards that could not be cached, and samples whose cached bytes were wrong and came from the store again. None is good.",
            "Not cached: the store fails, or the disk is full. Wrong bytes: a disk that lies, drain that node.",
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
            "Bytes in a node's cache, which its ranks share: the five fullest nodes. Rises to data.cache_gb, never above it.",
            "It stays at the limit with evictions beside it: raise data.cache_gb.",
            "Data starves",
        ),
        [Query(f"topk(5, max by (run, node) ({series('cache_bytes')}))", "{{node}} ({{run}})")],
        "bytes",
        width=24,
    )
    return Row("Cache of the node", [found, moves, faults, size])


def _decoding() -> Row:
    # a rank that has decoded nothing has no time for an image
    each = f"{rate('decode_seconds_total')} / ({rate('decoded_images_total')} > 0)"
    cost = curves(
        Text(
            "Time to decode an image",
            "Processor time for one image: slowest, median, fastest rank. Some milliseconds.",
            "High everywhere: build the shards at the size of training. High on one rank: its processor is slow or shared.",
            "Data starves",
        ),
        spread(each, "rank"),
        "s",
    )
    cores = curves(
        Text(
            "Cores that decode",
            "Processor cores that a rank's decoding keeps busy: busiest, median, idlest rank. At most data.threads.",
            "Near data.threads with empty queues: raise data.threads, or give the ranks more cores.",
            "Data starves",
        ),
        spread(rate("decode_seconds_total"), "rank"),
        "none",
    )
    bad = curves(
        Text(
            "Bad samples by cause",
            "Samples that could not be used, by cause, stacked. digest: other bytes than were stored; undecodable: the picture itself; "
            "unavailable: a shard that could not be had.",
            "digest: `python -m shards verify URL` says how many and where. RUN/quarantine.jsonl names each.",
            "Bad samples",
        ),
        [Query(f"sum by (cause) ({increase('bad_samples_total')})", "{{cause}}")],
        "short",
        stacked=True,
        bars=True,
    )
    return Row("Decoding", [cost, cores, bad])
