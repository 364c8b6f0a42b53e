"""Short runs of tests/server/fuzz.py and of schemathesis; long ones are started by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.fuzz import KEYS, SEEDS, VALUES, parse_body

anything = st.recursive(
    st.sampled_from(VALUES)
    | st.text()
    | st.text(st.characters(categories=["Cs", "Cc", "Mn"]))
    | st.integers()
    | st.floats()
    | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=8,
)
changed = st.builds(
    lambda seed, changes: json.dumps(seed | changes).encode(),
    st.sampled_from(SEEDS),
    st.dictionaries(st.sampled_from(KEYS), anything, max_size=2),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changed | st.binary())
def test_any_body_is_read_or_refused_as_clients_know_it(body):
    """`python -m tests.server.fuzz` is the same test, guided by coverage."""
    parse_body(body)


def test_the_server_keeps_to_its_own_document(server, tmp_path):
    """No answer is a 5xx, or has a status or form that /openapi.json does not describe."""
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert command is not None
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    arguments = f"{server.url}/openapi.json --max-examples 5 --phases fuzzing --seed 1"
    done = subprocess.run(
        [command, "run", *arguments.split(), "--checks", f"{checks},response_schema_conformance"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr
