"""Publishes the metrics of a run's ranks: registries of the ranks in, one HTTP endpoint a node (and a Pushgateway's groups) out.

On the way of a metric: `rank_socket` answers in each rank, `node_collector` asks the ranks of a node, `server` and `pushgateway` hand the
result out, both in the process that `process` starts and `main` runs. `publish` opens all of it for a rank, `targets` gives Prometheus the
addresses, `access` guards them. Public: `Publication` (publish), `RankIdentity` (identity), `MetricsServer` (server), `TargetsFile`
(targets).
"""
