"""Benchmarks of speed, memory and size. `make bench` runs those of docs/performance.md."""
