"""Tests, mirroring the folders; `parity` compares the networks with golden figures."""
