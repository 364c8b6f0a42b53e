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
    (tmp_path / "bad.txt").write_bytes(b"caf\0")
    code, _, err = polyvec("dedupe", tmp_path, "--model", tiny_model)
    assert code == ExitStatus.INCOMPLETE
    assert "skipped" in err
