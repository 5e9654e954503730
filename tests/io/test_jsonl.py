from __future__ import annotations

from pathlib import Path

from capfilt.io.jsonl import JsonLines


def test_jsonl_half_a_line_of_a_killed_writer_is_left_out(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "log.jsonl")
    assert (lines.rows(), lines.last()) == ([], None)
    for step in range(3):
        lines.append({"step": step})
    with lines.path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in lines.rows()] == [0, 1, 2]
    assert lines.last() == {"step": 2}
    lines.keep(lambda row: row["step"] < 2)
    lines.append({"step": 2, "again": True})
    assert lines.rows() == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]
