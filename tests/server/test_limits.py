"""Every limit is an option, and the page lists all of them."""

import re
from pathlib import Path

from polyvec.server.limits import limits_table

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")


def test_the_page_has_the_table_of_all_limits():
    [table] = re.findall(r"<!-- limits -->\n(.*?)\n<!-- /limits -->", PAGE, re.DOTALL)
    assert table == limits_table(), f"the table on the page must be:\n{limits_table()}"
