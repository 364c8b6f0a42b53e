"""Index a folder of files and find passages by meaning and by words. Needs `polyvec[search]`.

This package also finds near-duplicates, clusters passages by topic and gives access to
`polyvec.classification`.
"""

from polyvec.classification import Classifier, classify, learn_examples, learn_names
from polyvec.search.answers import Answer
from polyvec.search.clustering import Clusters, cluster_texts
from polyvec.search.duplicates import Group, find_duplicates
from polyvec.search.fusion import Part
from polyvec.search.index import BusyError, Index, NotUpdatedError, UnwritableError
from polyvec.search.retrieval import Hit
from polyvec.search.updating import Update

__all__ = [
    "Answer",
    "BusyError",
    "Classifier",
    "Clusters",
    "Group",
    "Hit",
    "Index",
    "NotUpdatedError",
    "Part",
    "UnwritableError",
    "Update",
    "classify",
    "cluster_texts",
    "find_duplicates",
    "learn_examples",
    "learn_names",
]
