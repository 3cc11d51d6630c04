"""Observes a server under load with a real Prometheus and a real browser; takes the README's pictures."""
