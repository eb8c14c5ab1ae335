"""Whatever the OpenAPI page allows, and much that it does not, gets an answer that the page tells of."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from deepfailguard.serving.app import create_app
from deepfailguard.serving.settings import ServerSettings
from tests.serving_examples import GuardDouble

ADMIN = "a-key-for-operators"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

app = create_app(GuardDouble(), ServerSettings(deadline=30.0, admin_key=ADMIN))
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.filterwarnings("ignore")  # of what the fuzzer itself does
@schema.parametrize()
@BOUNDED
def test_the_page_tells_everything(case: schemathesis.Case) -> None:
    response = case.call(headers={"X-API-Key": ADMIN})
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400:
        assert isinstance(response.json()["error"], str)


def test_the_page_names_every_route() -> None:
    labels = {each.ok().label for each in schema.get_all_operations()}
    assert {
        "POST /v2/models/{model}/infer",
        "POST /v2/models/{model}/versions/{version}/infer",
        "POST /predict",
        "POST /versions/swap",
        "GET /metrics",
    } <= labels
    assert len(labels) == 16
