import numpy as np
import pytest

from polyvec.search.duplicates import find_duplicates, group_similar


def test_copies_are_grouped_with_the_first_file_and_other_files_are_not(notes, searcher):
    (notes / "a.md").write_text("# Foxes\nThe quick brown fox.\n\n## Den\n\nIt sleeps there.")
    (notes / "z.txt").write_text("\nDer schnelle Fuchs springt.\n\n")
    (notes / "bad.txt").write_bytes(b"a\0b")
    (notes / "empty.txt").write_text("")
    told = []
    groups = find_duplicates(notes, searcher, threshold=1.0, on_skipped=told.append)
    found = {group.path: [path for path, _ in group.copies] for group in groups}
    assert found == {"a.md": ["fox.md"], "z.txt": ["sub/fuchs.txt"]}
    assert len(told) == 1
    assert find_duplicates(notes, searcher, threshold=0.01)[0].path == "a.md"


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_groups_do_not_depend_on_the_blocks_in_which_items_come(size):
    vectors = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def groups(size):
        blocks = (
            (range(i, min(i + size, 200)), vectors[i : i + size]) for i in range(0, 200, size)
        )
        found = group_similar(blocks, 0.9)
        return [(first, [item for item, _ in copies]) for first, copies in found]

    assert groups(size) == groups(1)
    for first, copies in groups(size):
        assert all(vectors[copy] @ vectors[first] > 0.899 for copy in copies)
