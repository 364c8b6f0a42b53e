"""Index a folder of text and Markdown, and find passages by meaning. Needs `polyvec[search]`."""

from polyvec.search.index import BusyError, Hit, Index, Update

__all__ = ["BusyError", "Hit", "Index", "Update"]
