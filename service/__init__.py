"""The HTTP face of the service. Knows the queue and the store, not the networks."""
