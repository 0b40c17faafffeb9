"""The project on one machine: programs that show it, and the real servers that they and the tests use.

    demo              pictures in, a trained encoder, metrics and picture grids out (`make demo`; python -m launch.local.demo)
    demo_pictures     pictures that the demo trains on, holds back, and probes with
    demo_summary      figures and checks at the end of the demo
    live_monitoring   the run of the demo beside a Prometheus server (`make monitoring`; python -m launch.local.live_monitoring)
    object_store      an S3 server (SeaweedFS)
    prometheus        a Prometheus server (Prometheus, PrometheusError, configuration)

Both servers listen on the loopback interface only, and live as long as their `with` block.
"""
