"""Routes are listed in one place, and their files do not depend on one another."""

import ast
from pathlib import Path

from polyvec.server import routes
from polyvec.server.routes import ENDPOINTS

FOLDER = Path(routes.__file__).parent
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")


def test_route_files_do_not_import_one_another():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("polyvec.server.routes"), path.name


def test_every_file_is_in_the_list_of_routes():
    for path in FILES:
        module = getattr(routes, path.stem)
        assert module.ENDPOINTS and all(one in ENDPOINTS for one in module.ENDPOINTS), path.name


def test_no_two_routes_are_the_same():
    places = [(endpoint.method, endpoint.path) for endpoint in ENDPOINTS]
    assert len(set(places)) == len(places)
