import json

from polyvec.terminal import ExitStatus


def test_dedupe_lists_copies_below_the_file_they_copy(polyvec, tiny_model, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A fox sleeps.\n")
    code, out, err = polyvec("dedupe", tmp_path, "--model", tiny_model)
    assert code == 0
    assert [line.split() for line in out.splitlines()[:2]] == [
        [str(tmp_path / "a.txt")],
        ["1.00", str(tmp_path / "b.txt")],
    ]
    assert "1 copies of 1 files" in err


def test_no_copies_are_a_normal_answer_and_skipped_files_are_not(polyvec, tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text("A fox sleeps.\n")
    assert polyvec("dedupe", tmp_path, "--model", tiny_model)[:2] == (ExitStatus.DONE, "")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    code, _, err = polyvec("dedupe", tmp_path, "--model", tiny_model)
    assert code == ExitStatus.INCOMPLETE
    assert "skipped" in err


def test_rows_of_a_table_are_compared_by_the_column_that_is_named(polyvec, tiny_model, tmp_path):
    path = tmp_path / "mails.csv"
    path.write_text("id,body\n1,A fox sleeps.\n2,the lazy dog\n3,A fox sleeps.\n,snow\n5,\n6,\n")
    words = ["dedupe", path, "--text-column", "body", "--id-column", "id", "--threshold", 1]
    words += ["--model", tiny_model]
    code, out, err = polyvec(*words, "--json")
    assert code == ExitStatus.INCOMPLETE
    assert f"{path}, line 5: id is missing" in err
    [group] = map(json.loads, out.splitlines())
    assert group["row"] == {"id": "1", "body": "A fox sleeps."}
    assert [copy["row"]["id"] for copy in group["copies"]] == ["3"]
    code, out, _ = polyvec(*words)
    assert [line.split()[:3] for line in out.splitlines()[:2]] == [
        [f"{path}:2", "1", "A"],
        ["1.00", f"{path}:4", "3"],
    ]
    code, _, err = polyvec("dedupe", tmp_path, "--text-column", "body", "--model", tiny_model)
    assert code == ExitStatus.REFUSED
    assert "is a folder" in err
