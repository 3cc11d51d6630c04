"""What a real Prometheus and a real browser see of a server under load; they take the README's pictures."""
