from polyvec.search.duplicates import find_duplicates


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
