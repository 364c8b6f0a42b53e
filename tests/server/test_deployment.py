"""Deployment as docs/serving.md describes it: TLS, the Dockerfile, the Kubernetes manifest."""

import json
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

from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics
from polyvec.server.run import CLOSE_SECONDS, check_certificate
from tests.server.conftest import serving

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy/alert-rules.yaml").read_text("utf-8"))
SCALER = yaml.safe_load((ROOT / "deploy/autoscaler.yaml").read_text("utf-8"))
DASHBOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text("utf-8"))
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


def list_rules():
    return [rule for group in RULES["groups"] for rule in group["rules"]]


EXPRESSIONS = [
    *(rule["expr"] for rule in list_rules()),
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(trigger["metadata"]["query"] for trigger in SCALER["spec"]["triggers"]),
]


def exported_names():
    """The names of all time series that a server exports, and those that rules record."""
    metrics = Metrics()
    # A metric with labels has a series only when it has been counted.
    metrics.requests.labels("/embed", 200).inc()
    metrics.failures.labels("error").inc()
    lines = metrics.render([]).decode().splitlines()
    exported = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    return exported | {rule["record"] for rule in list_rules() if "record" in rule}


def test_every_metric_of_the_dashboard_and_the_rules_is_exported():
    names = exported_names()
    query = DASHBOARD["templating"]["list"][1]["query"]
    for expression in [*EXPRESSIONS, query]:
        without_labels = re.sub(r"\{[^}]*\}", "", expression)
        used = set(re.findall(r"\b(?:polyvec|process|python)[_:][\w:]+", without_labels))
        assert used and used <= names, expression


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_is_balanced_and_knows_its_functions(expression):
    """A check of the syntax: brackets, functions, and a window for every rate."""
    assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))
    known = {"sum", "min", "by", "rate", "increase", "clamp_min", "histogram_quantile"}
    without_labels = re.sub(r"\{[^}]*\}", "", expression)
    assert set(re.findall(r"(\w+) ?\(", without_labels)) <= known
    for inner in re.findall(r"(?:rate|increase)\(([^)]*)\)", without_labels):
        assert re.fullmatch(r"\w+_(?:total|bucket)\[\d+[mh]\]", inner)


def test_every_alert_says_what_happens_and_what_to_do():
    alerts = [rule for rule in list_rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"] and rule["annotations"]["remedy"]


def test_the_panels_of_the_dashboard_do_not_overlap():
    cells = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not own & cells and max(x for x, _ in own) < 24
        cells |= own
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_scaler_scales_the_deployment_of_the_manifest():
    [deployment] = [document for document in MANIFEST if document["kind"] == "Deployment"]
    assert SCALER["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert SCALER["spec"]["minReplicaCount"] >= deployment["spec"]["replicas"]


def test_kubernetes_gives_the_server_the_time_that_it_needs_to_stop():
    pod = MANIFEST[0]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert "args" not in container, "the limits are the default ones"
    limits = Limits()
    [program, pause] = container["lifecycle"]["preStop"]["exec"]["command"]
    needed = int(pause) + limits.shutdown_delay_seconds + limits.drain_seconds + CLOSE_SECONDS
    assert program == "sleep" and needed < pod["terminationGracePeriodSeconds"]
    probe = container["readinessProbe"]
    assert probe["httpGet"]["path"] == "/ready"
    notices = probe["periodSeconds"] * probe["failureThreshold"] + probe.get("timeoutSeconds", 1)
    assert notices <= limits.shutdown_delay_seconds
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"
