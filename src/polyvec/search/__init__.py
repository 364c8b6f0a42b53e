"""Index a folder of files, and find passages by meaning and by words. Needs `polyvec[search]`."""

from polyvec.search.asking import Hit
from polyvec.search.duplicates import Group, find_duplicates
from polyvec.search.fusion import Part
from polyvec.search.index import BusyError, Index, Update

__all__ = ["BusyError", "Group", "Hit", "Index", "Part", "Update", "find_duplicates"]
