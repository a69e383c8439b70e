"""schemathesis against the whole server: requests made from its own OpenAPI document, good and bad, fixed in number
and seed. Nothing is a 5xx, and every answer is one that the document describes."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from serve_fakes import running

from dacheng.serve.limits import Limits
from dacheng.serve.openapi.document import OPERATIONS
from dacheng.serve.options import EngineOptions
from dacheng.serve.start import start_model

pytestmark = [pytest.mark.slow, pytest.mark.process]
pytest.importorskip("uvicorn")
schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("DACHENG_FUZZ_EXAMPLES", "20"))  # for each route and each way
OURS = [operation for operation in OPERATIONS if "lora" not in operation.path]


@pytest.fixture(scope="module")
def schema(tiny_directory):
    model, _ = start_model(tiny_directory, ["tiny"], EngineOptions(max_batch=4, max_waiting=64))
    with running(model, limits=Limits(n=4, max_tokens=64)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def checks():
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks as openapi

    return [
        not_a_server_error, openapi.status_code_conformance, openapi.content_type_conformance,
        openapi.response_schema_conformance,
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("operation", OURS, ids=lambda operation: operation.path)
def test_no_request_fails_the_server_or_is_answered_otherwise_than_described(schema, operation, mode):
    if mode == "negative" and operation.request is None:
        pytest.skip("there is nothing to send")
    known, statuses = schema[operation.path][operation.method.upper()], set()

    @seed(20)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=known.as_strategy(schemathesis.GenerationMode(mode)))
    def ask(case):
        if isinstance(case.body, dict) and "model" in case.body and mode == "positive":
            case.body["model"] = "tiny"  # a model that is there gets further
        response = case.call(timeout=30)
        statuses.add(response.status_code)
        case.validate_response(response, checks=checks())

    ask()
    assert operation.request is None or mode == "positive" or statuses & {400, 404, 415}


def test_the_server_is_still_well(schema):
    assert schema["/health"]["GET"].Case().call(timeout=10).json() == {"status": "ok"}
