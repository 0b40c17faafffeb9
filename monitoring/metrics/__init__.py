"""The metrics of one rank: numbers of the training loop and totals of the loader in, a registry of Prometheus's client out.

    definitions     every metric, declared once; `LoaderSeries` for the causes and buckets that the loader declares
    run_metrics     `RunMetrics`, which the training loop calls
    loader_totals   the loader's totals as increments of counters
    evaluation      figures of an evaluation on held-back pictures as values of gauges
    collectors      a histogram from counts made elsewhere, and labels on every series
    hardware        readings of the machine's memory and of the rank's GPU
    reference       the page docs/metrics.md, made from the definitions

Public names: `RunMetrics`, `LoaderSeries`, `Definition`, `DEFINITIONS` and `complete`, each imported from its module.
"""
