"""Reporting: what a run that goes on shows to people and to Prometheus.

In: the facts of each step and of each save, from the loop. Out: lines or a bar on the console, `history.jsonl` and `events.jsonl` in the
run folder, and metrics. `reporter.Reporter` is the one object that the loop calls, `reporter.StepFacts` the one record that it passes for
each step. `telemetry` publishes the metrics from the moment when the ranks have joined, `alarms` reports what is wrong, by the watches of
`health`; `console` prints, and `flops` counts operations.
"""
