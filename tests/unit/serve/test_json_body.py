"""JSON bodies in slices: the same answers as of the whole text, and an end at the first error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raydkm.serve import json_body as module
from raydkm.serve.errors import RefusalError
from raydkm.serve.json_body import read_vectors
from raydkm.serve.schemas import AssignRequest

DIM = 3
numbers = st.one_of(st.floats(-1e15, 1e15), st.integers(-(10**6), 10**6))
slices = st.sampled_from([1, 7, 50, 10**6])


@given(
    vectors=st.lists(st.lists(numbers, min_size=DIM, max_size=DIM), min_size=1, max_size=8),
    top=st.sampled_from([None, 1, 5]),
    indent=st.sampled_from([None, 0, 2]),
    top_first=st.booleans(),
    size=slices,
)
def test_slices_of_any_size_give_the_vectors_of_the_whole(
    vectors: list[list[float]], top: int | None, indent: int | None, top_first: bool, size: int
) -> None:
    parts: dict[str, Any] = {"vectors": vectors} if top is None else {"vectors": vectors, "top": top}
    body = json.dumps(dict(reversed(parts.items())) if top_first else parts, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "SLICE_BYTES", size)
        found, found_top = read_vectors(body, DIM, 100)
    assert np.array_equal(found, np.array(vectors, float))
    assert found_top == top


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from([*'[]{},:" 19', "", "],[", "null", '"]"', "[1,2,3]", ",]"])),
        min_size=1,
        max_size=4,
    ),
    size=slices,
)
def test_what_is_taken_in_slices_is_valid_as_a_whole(changes: list[tuple[int, str]], size: int) -> None:
    text = '{"top": 2, "vectors": [[1, 2, 3], [4, 5, 6] , [7.5, 8, 9]]}'
    for place, put in changes:
        place %= len(text) + 1
        text = text[:place] + put + text[place + 1 :]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "SLICE_BYTES", size)
        try:
            found, top = read_vectors(text.encode(), DIM, 100)
        except RefusalError as error:
            assert error.status in (400, 413, 422)
            return
    whole = AssignRequest.model_validate_json(text)
    assert (whole.vectors, whole.top) == (found.tolist(), top)


def many(element: str, count: int = 50_000) -> str:
    return ",".join([element] * count)


WRONG = {
    "empty strings": f'{{"vectors": [[{many(chr(34) * 2)}]]}}',
    "quoted numbers": f'{{"vectors": [{many("[" + many(chr(34) + "0.5" + chr(34), DIM) + "]")}]}}',
    "objects": f'{{"vectors": [[{many("{}")}]]}}',
    "lists": f'{{"vectors": [[{many("[]")}]]}}',
    "nulls after a good vector": f'{{"vectors": [[1, 2, 3], {many("null")}]}}',
    "a long vector": f'{{"vectors": [[{many("1")}]]}}',
    "short vectors": f'{{"vectors": [{many("[1]")}]}}',
    "unknown keys": "{" + ",".join(f'"k{i}": 1' for i in range(50_000)) + "}",
    "unknown keys after the vectors": '{"vectors": [[1, 2, 3]],' + ",".join(f'"k{i}": 1' for i in range(50_000)) + "}",
    "a long string": f'{{"vectors": "{"x" * 500_000}"}}',
    "digits": f'{{"vectors": [[{"9" * 500_000}, 1, 1]]}}',
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Lengths of the texts that are parsed, and numbers of the errors that are built."""
    lengths: list[int] = []
    errors: list[int] = []

    def counted(validate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(text: bytes) -> Any:
            lengths.append(len(text))
            try:
                return validate(text)
            except ValidationError as error:
                errors.append(error.error_count())
                raise

        return run

    class Vectors:
        validate_json = staticmethod(counted(module._VECTORS.validate_json))

    class Request:
        model_validate_json = staticmethod(counted(AssignRequest.model_validate_json))

    monkeypatch.setattr(module, "SLICE_BYTES", 10_000)
    monkeypatch.setattr(module, "_VECTORS", Vectors)
    monkeypatch.setattr(module, "AssignRequest", Request)
    return lengths, errors


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_body_is_left_at_its_first_error(case: str, parsed: tuple[list[int], list[int]]) -> None:
    lengths, errors = parsed
    with pytest.raises(RefusalError) as refused:
        read_vectors(WRONG[case].encode(), DIM, 10**6)
    assert refused.value.status in (400, 413, 422)
    assert sum(errors) <= 1
    assert sum(lengths) <= 30_000 or case == "digits"  # of 150,000 and more; the parser ends within the digits


def test_the_reason_names_the_vector_of_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_BYTES", 20)
    rows = [[1, 2, 3]] * 40
    with pytest.raises(RefusalError, match=r"vectors\.40\.1: Input should be a valid number"):
        read_vectors(json.dumps({"vectors": [*rows, [1, None, 3]]}).encode(), DIM, 100)
    with pytest.raises(RefusalError, match=r"vectors\.40: 2 dimensions, the model has 3"):
        read_vectors(json.dumps({"vectors": [*rows, [1, 2]]}).encode(), DIM, 100)


def test_parsing_ends_when_the_client_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_BYTES", 20)
    cancelled, matrix, done = threading.Event(), module._matrix, []

    def one(*arguments: Any) -> Any:
        done.append(True)
        cancelled.set()
        return matrix(*arguments)

    monkeypatch.setattr(module, "_matrix", one)
    with pytest.raises(RefusalError, match="left"):
        read_vectors(json.dumps({"vectors": [[1, 2, 3]] * 90}).encode(), DIM, 100, cancelled)
    assert len(done) == 1
