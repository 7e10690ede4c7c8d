"""Documents of rows are checked where they may be unlike those before, and not once more for each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import event_model
import numpy as np
import pytest
from event_model import DocumentNames, compose_run
from jsonschema import ValidationError

from bluesky_symdenoise.catalog.store.access import _Normalizer
from bluesky_symdenoise.catalog.store.journal import Journal
from bluesky_symdenoise.catalog.store.writer import DerivedRun
from bluesky_symdenoise.derived.columns import SCALARS
from bluesky_symdenoise.derived.row import Row, empty_row

SHAPE = (1, 8, 8)


class Checks:
    """Count how often a kind of document is checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: DocumentNames) -> None:
        self.number, validator = 0, event_model.schema_validators[name]

        class Counted:
            def validate(_, doc: Any) -> None:  # noqa: N805
                self.number += 1
                validator.validate(doc)

        monkeypatch.setitem(event_model.schema_validators, name, Counted())


def rows(number: int, **more: Any) -> list[Row]:
    one = empty_row(SHAPE)
    return [Row(one.intensity, one.sigma, {**one.scalars, **more}) for _ in range(number)]


def written(folder: Path, each: list[Row]) -> list[tuple[str, Any]]:
    """Return the documents of a derived run with these rows."""
    documents: list[tuple[str, Any]] = []
    journal = Journal(folder / "run.journal", made_with={})
    try:
        run = DerivedRun(
            lambda name, doc: documents.append((name, doc)),
            journal=journal,
            start={"raw_uid": "none"},
            uid="11111111-1111-1111-1111-111111111111",
            time=1e9,
            arrays={},
        )
        image = {"source": "test", "dtype": "array", "shape": list(SHAPE)}
        stream = run.stream({"name": "primary", "time": 1e9, "data_keys": {"det": image}}, ["det"])
        for number, row in enumerate(each, 1):
            # NumPy's integers come from stored runs, and are no integers of JSON.
            stream.append(seq_num=np.int64(number), time=1e9 + number, rows={"det": row})  # type: ignore[arg-type]
        run.stop(exit_status="success", reason="", provenance={"complete": True, "failures": []})
    finally:
        journal.close()
    return documents


def test_documents_of_many_like_rows_are_checked_once_and_all_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        checks = {name: Checks(patched, name) for name in (DocumentNames.event, DocumentNames.stream_datum)}
        documents = written(tmp_path, rows(20))
        assert [each.number for each in checks.values()] == [1, 2]
    assert [name for name, _ in documents].count("event") == 20
    for name, doc in documents:
        event_model.schema_validators[DocumentNames[name]].validate(doc)


def test_a_row_with_other_columns_than_the_run_is_refused_also_later(tmp_path: Path) -> None:
    lacking = rows(1)[0]
    scalars = {name: value for name, value in lacking.scalars.items() if name != next(iter(SCALARS))}
    with pytest.raises(event_model.EventModelValidationError, match="sets of keys must match"):
        written(tmp_path, [*rows(3), Row(lacking.intensity, lacking.sigma, scalars)])


def test_the_writer_checks_the_first_document_of_each_form() -> None:
    sent: list[dict[str, Any]] = []
    normalizer = _Normalizer([])
    normalizer.dispatcher.subscribe(lambda _, doc: sent.append(doc))
    run = compose_run()
    key = {"source": "test", "dtype": "number", "shape": []}
    stream = run.compose_descriptor(name="primary", data_keys={"one": key, "other": key})
    normalizer("start", run.start_doc)
    normalizer("descriptor", stream.descriptor_doc)
    good = stream.compose_event(data={"one": 1.0, "other": 2.0}, timestamps={"one": 1.0, "other": 1.0})
    normalizer("event", good)
    normalizer("event", {**good, "seq_num": 2})
    assert [doc["seq_num"] for doc in sent[2:]] == [1, 2]
    # A document of another form is checked again.
    with pytest.raises(ValidationError):
        normalizer("event", {**good, "data": {"one": 1.0}, "timestamps": {"one": 1.0}, "seq_num": "three"})
