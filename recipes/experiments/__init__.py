"""Experiments: short training runs that answer one question each (docs/log.md)."""
