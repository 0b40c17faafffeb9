"""Prometheus's side of the metrics: scrape configuration, recording rules, alert rules and their tests. Data only, no code.

    prometheus.yml      how Prometheus finds and scrapes the runs
    rules/              recording.yml: series for alerts and dashboards; alerts.yml: conditions that a person is notified of
    tests/              cases in which each alert fires and in which it must not (promtool test rules)
    alertmanager.yml    example of who is notified of which alert

In go the target files and the metrics of the runs, out come recorded series and alerts. `launch.local.prometheus` starts a server with
these files on one machine.
"""
