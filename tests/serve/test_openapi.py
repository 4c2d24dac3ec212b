"""Requests made from the OpenAPI document: whatever it allows, and more, has an answer that it declares."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.conftest import ADMIN, TOKEN, Running

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def values(schema: dict[str, Any]) -> st.SearchStrategy:
    """Values that follow a JSON schema."""
    if "anyOf" in schema:
        return st.one_of(*(values(inner) for inner in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "object":
        fields = {name: values(inner) for name, inner in schema["properties"].items()}
        needed = {name: fields.pop(name) for name in schema.get("required", [])}
        return st.fixed_dictionaries(needed, optional=fields)
    if kind == "array":
        return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=5)
    kinds = {
        "integer": st.integers(min_value=schema.get("minimum")),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "string": st.text(min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 20)),
        "null": st.none(),
    }
    return kinds[kind]


def bodies(content: dict[str, Any]) -> st.SearchStrategy[tuple[str, bytes]]:
    """Content types, declared and not, with bodies that follow the schema of JSON, and others."""
    schema = content["application/json"]["schema"]
    following = (values(schema) | ANY).map(lambda value: json.dumps(value).encode())
    kinds = st.sampled_from([*content, "text/plain", ""])
    return st.one_of(
        st.tuples(st.just("application/json"), following), st.tuples(kinds, st.binary(max_size=80) | following)
    )


@given(data=st.data())
@settings(max_examples=200)
def test_every_answer_is_declared_and_none_is_a_fault(service: Running, data: st.DataObject) -> None:
    _, document, _ = service.send("GET", "/openapi.json", token=None)
    routes = [(path, method) for path, methods in document["paths"].items() for method in methods]
    path, method = data.draw(st.sampled_from(routes))
    route = document["paths"][path][method]
    query = {
        parameter["name"]: data.draw(values(parameter["schema"]) | st.text(max_size=5))
        for parameter in route.get("parameters", [])
        if data.draw(st.booleans())
    }
    kind, body = "", None
    if "requestBody" in route:
        kind, body = data.draw(bodies(route["requestBody"]["content"]))
    token = data.draw(st.sampled_from([TOKEN, ADMIN, ADMIN, None, "another-token-of-nobody"]))
    sent = {name: "" if value is None else value for name, value in query.items()}
    target = f"{path}?{urllib.parse.urlencode(sent, errors='replace')}" if sent else path
    status, reply, _ = service.send(method.upper(), target, body, token, content_type=kind)
    assert status < 500, reply
    assert str(status) in route["responses"], reply
    if status == 401:
        assert route["security"] == [{"token": []}]


def test_the_document_tells_of_tokens_and_of_every_refusal(service: Running) -> None:
    _, document, _ = service.send("GET", "/openapi.json", token=None)
    assert document["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    with_token = {path for path, methods in document["paths"].items() if "security" in next(iter(methods.values()))}
    assert with_token == {"/v1/assign", "/v1/model", "/v1/reload", "/metrics"}
    for methods in document["paths"].values():
        for route in methods.values():
            assert {"200", "400", "500"} <= set(route["responses"])
