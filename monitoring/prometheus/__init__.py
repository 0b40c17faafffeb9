"""What Prometheus makes of a run: scrape configuration, recording and alert rules, tests of the rules, and a server for one machine.

    prometheus.yml      how runs are found and scraped
    rules/              recording.yml: what alerts and dashboards are made of; alerts.yml: what somebody is told of
    tests/              cases in which each alert fires and in which it must not (promtool test rules)
    alertmanager.yml    an example: who is told

In goes a folder of target files, out come a URL and answers to queries. Nothing here is imported by a run.
"""

from launch.local.prometheus import FOLDER, Prometheus, PrometheusError, configuration

__all__ = ["Prometheus", "PrometheusError", "configuration", "FOLDER"]
