"""The service as Prometheus, its alerts, Grafana's queries and KEDA see it."""
