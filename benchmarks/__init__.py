"""Speed, memory and size, measured; `make bench` rewrites docs/performance.md."""
