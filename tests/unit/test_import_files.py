"""Files as a whole: what is refused and with which advice, pipes, marks, memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from modules.storage.import_formats import BadRecord, ImportedConversation, ImportFile, ImportFileError


def write(path: Path, *lines: Any) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n", "utf-8"
    )
    return path


def read(path: Path, **options: Any) -> Tuple[List[ImportedConversation], List[BadRecord], ImportFile]:
    with ImportFile(path, **options) as file:
        items = list(file)
    good = [item for item in items if isinstance(item, ImportedConversation)]
    return good, [item for item in items if isinstance(item, BadRecord)], file


CHAT = {
    "messages": [{"role": "user", "content": "What is a WAL?"}, {"role": "assistant", "content": "A log."}]
}
OURS = {
    "id": "c1",
    "title": "First",
    "metadata": {"a": 1},
    "messages": [
        {
            "id": "m1",
            "role": "user",
            "name": "Ada",
            "content": "Hi",
            "created_at": "2024-05-01T10:00:00+02:00",
        },
        {"id": "m2", "role": "assistant", "content": "Hello", "metadata": {"model": "x"}, "parent_id": "m1"},
    ],
}
TEXT = json.dumps(CHAT)
REFUSED = [
    (b"", "is empty"),
    (b" \n\n ", "nothing but blanks"),
    (gzip.compress(TEXT.encode()), "is gzip; unpack it first: gunzip"),
    (b"PK\x03\x04rest", "zip archive.*conversations.json"),
    (b"BZh91AY", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd\x00", "zstd"),
    (b"SQLite format 3\x00\x10\x00", "SQLite database.*--url"),
    (TEXT.encode("utf-16"), "iconv -f UTF-16"),
    (TEXT.encode("utf-16-le"), "iconv -f UTF-16"),
    (TEXT.encode("utf-16-be"), "iconv -f UTF-16"),
    (TEXT.encode("utf-32"), "UTF-32"),
    (b"\x7fELF\x02\x01\x01\x00\x00", "binary"),
    (b"name,text\nada,hi\n", "does not look like JSON"),
    (b"Dear diary,\n", "does not look like JSON; known are"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_file_that_cannot_be_one_is_refused_with_advice(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)

    with pytest.raises(ImportFileError, match=message), ImportFile(path):
        pass


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="does not exist"), ImportFile(tmp_path / "absent"):
        pass
    with pytest.raises(ImportFileError, match="is a directory; name a file in it"), ImportFile(tmp_path):
        pass
    write(tmp_path / "conversations.json", [CHAT])
    with pytest.raises(ImportFileError, match=r"did you mean .*conversations\.json\?"), ImportFile(tmp_path):
        pass
    with pytest.raises(ImportFileError, match="cannot be opened"), ImportFile("nul\x00byte"):
        pass


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(TEXT + "\n" + TEXT + "\n", encoding="utf-8"))
    writer.start()
    good, bad, file = read(pipe)
    writer.join()

    assert (len(good), bad, file.size_bytes) == (2, [], None)


def test_bytes_read_grow_to_the_size(tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "x.jsonl", CHAT, OURS),
        write(tmp_path / "y.json", json.dumps([CHAT, OURS])),
    ):
        _, _, file = read(path)
        assert file.bytes_read == file.size_bytes == path.stat().st_size


def test_our_own_export_is_recognised(tmp_path: Path) -> None:
    with ImportFile(write(tmp_path / "x", {"atlas_export": 1}, {"kind": "kv"})) as file:
        assert file.is_own_export
        assert len(list(file.records())) == 2


def test_memory_stays_flat_in_an_array_of_many(tmp_path: Path) -> None:
    import tracemalloc

    line = json.dumps({"id": "x", "messages": [{"role": "user", "content": "y" * 1000}] * 1})
    path = tmp_path / "big.json"
    with path.open("w") as out:
        out.write("[")
        for number in range(20_000):
            out.write(("," if number else "") + line.replace('"x"', f'"x{number}"'))
        out.write("]")
    tracemalloc.start()
    with ImportFile(path) as file:
        count = sum(1 for _ in file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 20_000
    assert peak < 12 * 1024 * 1024, f"{peak:,} bytes for a file of {path.stat().st_size:,}"


def test_the_file_is_closed_when_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"no")
    file = ImportFile(path)
    with pytest.raises(ImportFileError), file:
        pass

    assert isinstance(file._stream, io.BufferedReader)
    assert file._stream.closed
