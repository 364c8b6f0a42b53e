from polyvec.terminal import shorten


def test_a_shortened_text_fits_the_size():
    for size in (5, 9, 20):
        assert len(shorten("one  two\nthree four five", size)) <= size + 1
    assert shorten("温泉" * 9, 5) == "温泉温泉 …"
