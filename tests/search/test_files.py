"""Which files of a folder are searched, and what is said of the others."""

import pytest

from polyvec.search import Index
from polyvec.search.files import list_files
from polyvec.search.selection import PassedOver, Selection


def make(folder, *paths, text="words"):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def listed(folder, **selection):
    return list(list_files(folder, Selection(**selection)))


def test_environments_builds_and_hidden_files_are_left_out(tmp_path):
    make(tmp_path, "a.md", ".hidden.md", ".git/a.md", "node_modules/x/a.js", "build/a.txt")
    make(tmp_path, "env/pyvenv.cfg", "env/lib/a.py", "cache/CACHEDIR.TAG", "cache/a.txt")
    make(tmp_path, "sub/dist/a.py", "sub/distant/a.py", "package-lock.json", "package.json")
    assert listed(tmp_path) == ["a.md", "package.json", "sub/distant/a.py"]
    everything = listed(tmp_path, all_files=True)
    assert {"build/a.txt", "env/lib/a.py", "package-lock.json"} < set(everything)
    assert not any("hidden" in path or ".git" in path for path in everything)


def test_gitignore_files_hold_below_their_folders_and_the_last_rule_wins(tmp_path):
    make(tmp_path, "a.txt", "b.txt", "sub/a.txt", "sub/b.txt", "sub/deep/keep.txt", "logs/x.log")
    make(tmp_path, ".gitignore", text="/a.txt\n*.log\nkeep.txt\n!\n[\n")
    make(tmp_path, "sub/.gitignore", text="b.txt\n!keep.txt\n")
    assert listed(tmp_path) == ["b.txt", "sub/a.txt", "sub/deep/keep.txt"]
    assert "a.txt" in listed(tmp_path, all_files=True)


def test_the_rules_of_the_repository_hold_in_its_folders(tmp_path):
    make(tmp_path, "docs/a.md", "docs/draft.md", "out/a.md", ".git/config")
    make(tmp_path, ".gitignore", text="draft.md\n/docs/a.txt\nout/\n")
    make(tmp_path, "docs/a.txt")
    assert listed(tmp_path / "docs") == ["a.md"]
    assert listed(tmp_path / "out") == ["a.md"], "a folder that is named is searched"


def test_patterns_include_and_exclude(tmp_path):
    make(tmp_path, "a.md", "a.txt", "old/a.md", "sub/old/b.md")
    assert listed(tmp_path, include=["*.md"]) == ["a.md", "old/a.md", "sub/old/b.md"]
    assert listed(tmp_path, exclude=["old/"]) == ["a.md", "a.txt"]
    assert listed(tmp_path, include=["sub/"], exclude=["*.txt"]) == ["sub/old/b.md"]


def test_what_is_passed_over_is_counted_by_kind(tmp_path):
    make(tmp_path, "a.md", "a.png", "b.PNG", "a.zip", "node_modules/a.js", "skip.md", "plain")
    make(tmp_path, ".gitignore", text="skip.md\n")
    (tmp_path / "program").write_bytes(b"\x7fELF\0\0")
    passed_over = PassedOver()
    assert list(list_files(tmp_path, Selection(), passed_over)) == ["a.md", "plain"]
    [sentence] = passed_over.sentences()
    assert sentence == (
        "passed over 2 .png, 1 .zip, 1 by .gitignore, 1 node_modules/, 1 without a suffix"
    )


@pytest.mark.timeout(300)
def test_a_larger_limit_reads_the_rest_of_a_table(tmp_path, searcher):
    rows = "".join(f"fox {n}\n" for n in range(20))
    make(tmp_path, "a.csv", text="name\n" + rows)
    short = Index(tmp_path, searcher, selection=Selection(max_rows=5)).update()
    assert short.passages == 5
    assert short.skipped == [
        f"{tmp_path / 'a.csv'}: only the first 5 rows are read; --max-rows reads more"
    ]
    whole = Index(tmp_path, searcher).update()
    assert (whole.passages, whole.skipped, whole.changed) == (20, [], ["a.csv"])


@pytest.mark.timeout(300)
def test_files_that_are_no_longer_wanted_leave_the_index_without_a_doubt(tmp_path, searcher):
    make(tmp_path, "a.md", "b.txt", "c.txt")
    Index(tmp_path, searcher).update()
    update = Index(tmp_path, searcher, selection=Selection(include=["*.md"])).update()
    assert (update.removed, update.doubt, update.files) == (["b.txt", "c.txt"], "", 1)
    assert update.notes == ["passed over 2 by --include"]
