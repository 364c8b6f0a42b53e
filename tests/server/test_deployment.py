"""Deployment as docs/serving.md describes it: TLS, the Dockerfile, the Kubernetes manifest."""

import re
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import kubernetes_validate
import pytest
import trustme
import yaml

from polyvec.server.run import check_certificate
from tests.server.conftest import serving

ROOT = Path(__file__).parents[2]
MANIFEST = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text("utf-8")))


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority, tmp_path_factory):
    """The files of a certificate for 127.0.0.1, and of its key."""
    folder, made = tmp_path_factory.mktemp("tls"), authority.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    return folder / "cert.pem", folder / "key.pem"


def test_tls(authority, certificate, long_model):
    """A client that trusts the authority gets vectors; one without trust or TLS, nothing."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with serving(long_model, tls=(trusting, *certificate)) as server:
        assert len(server.embed("a fox").json()["data"]) == 1
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{server.url}/health")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url.replace('https', 'http')}/health")


def test_a_certificate_that_does_not_work_is_named(certificate, tmp_path):
    cert, key = certificate
    check_certificate(None, None)
    check_certificate(cert, key)
    with pytest.raises(ValueError, match="both --tls-cert and --tls-key"):
        check_certificate(None, key)
    with pytest.raises(ValueError, match="both --tls-cert and --tls-key"):
        check_certificate(cert, None)
    for one, other in ((cert, tmp_path / "missing"), (tmp_path / "missing", key), (key, cert)):
        named = re.escape(f"--tls-cert {one} and --tls-key {other}")
        with pytest.raises(ValueError, match=named):
            check_certificate(one, other)


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("document", MANIFEST, ids=lambda document: document["kind"])
def test_kubernetes_knows_every_field_of_the_manifest(document):
    kubernetes_validate.validate(document, "1.31", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document | {"spek": {}}, "1.31", strict=True)
