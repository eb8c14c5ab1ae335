"""Events survive the process; a full disk does not reach who answers."""

import json
from pathlib import Path

import pytest

from deepfailguard.runtime.events import EventLog


def test_events_are_lines_of_json_and_the_newest_are_at_hand(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "deep" / "events.jsonl", clock=lambda: 86400.0)
    for number in range(60):
        log.write("fault", "ann", "timeout", f"number {number}\nwith a line break")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "deep" / "events.jsonl").read_text().splitlines()]
    assert len(lines) == 60
    assert lines[0] == {
        "time": "1970-01-02T00:00:00+00:00",
        "event": "fault",
        "version": "ann",
        "kind": "timeout",
        "detail": "number 0\nwith a line break",
    }
    assert list(log.newest()) == lines[-50:]


def test_the_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepfailguard.runtime.events._FILE_BYTES", 1000)
    log = EventLog(tmp_path / "events.jsonl")
    for _ in range(200):
        log.write("fault", "ann", "exception", "x" * 100)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    assert all(file.stat().st_size <= 1000 for file in files)


def test_what_cannot_be_written_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    assert log._file is not None

    class Full:
        def write(self, _: str) -> None:
            raise OSError("no space left on device")

        def seek(self, *_: int) -> None: ...
        def tell(self) -> int:
            return 0

        def flush(self) -> None: ...
        def close(self) -> None: ...

    log._file.stream.close()
    log._file.stream = Full()  # type: ignore[assignment]
    log.write("fault", "ann")
    log.write("recovered", "ann")
    assert log.lost == 2
    assert [event["event"] for event in log.newest()] == ["fault", "recovered"]
    assert len([record for record in caplog.records if "could not be written" in record.message]) == 1
    log.close()


def test_what_changes_how_versions_stand_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog()
    with caplog.at_level("INFO"):
        log.write("fault", "ann", "timeout", "it was slow")  # may come with every request
        log.write("suspended", "ann", "timeout", "suspended for timeout: it was slow")
        log.write("ready again", detail="2 versions serve")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "suspended: version 'ann': suspended for timeout: it was slow"),
        ("INFO", "ready again: 2 versions serve"),
    ]
