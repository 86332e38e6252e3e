"""Foreign files: every format by its looks, every kind of wrong input with what to do, constant memory."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.storage.import_formats import BadRecord, ImportedConversation, ImportFile
from modules.storage.import_shapes import ShapeError, conversation_from_record


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
SHAREGPT = {
    "id": "share_0",
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "system", "value": "s"},
    ],
}


def node(key: str, parent: Any, role: str = "user", text: Any = "text", time: Any = None, **more: Any) -> Any:
    content = {"content_type": "text", "parts": [text]} if isinstance(text, str) else text
    message = {"id": key, "author": {"role": role}, "content": content, "create_time": time, **more}
    return {"id": key, "parent": parent, "children": [], "message": message if role else None}


CHATGPT = {
    "conversation_id": "g1",
    "title": "A tree",
    "create_time": 1700000000.5,
    "update_time": 1700000100.0,
    "current_node": "b2",
    "mapping": {
        "root": {"id": "root", "parent": None, "children": ["sys"], "message": None},
        "b2": node("b2", "u2", "assistant", "edited answer", 1700000040),
        "sys": node("sys", "root", "system", ""),
        "u1": node("u1", "sys", "user", "first question", 1700000010),
        "u2": node("u2", "sys", "user", "edited question", 1700000030),
        "a1": node(
            "a1", "u1", "assistant", "first answer", 1700000020, metadata={"model_slug": "m", "empty": None}
        ),
    },
}


def test_our_own_lines(tmp_path: Path) -> None:
    good, bad, file = read(write(tmp_path / "x.data", OURS))

    assert bad == []
    assert file.formats == {"messages"}
    (found,) = good
    assert (found.id, found.title, found.metadata) == ("c1", "First", {"a": 1})
    first, second = found.messages
    assert first.created_at == datetime(2024, 5, 1, 8, tzinfo=timezone.utc)
    assert (first.id, first.role, first.name, first.content) == ("m1", "user", "Ada", "Hi")
    assert (second.metadata, second.parent_id, second.created_at) == ({"model": "x"}, "m1", None)


def test_openai_chat_lines_keep_what_has_no_place(tmp_path: Path) -> None:
    call = [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    line = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Look"}]},
            {"role": "assistant", "content": None, "tool_calls": call},
            {"role": "tool", "content": "42", "tool_call_id": "t"},
        ],
        "tools": [],
        "model": "m",
    }
    ((found,), bad, _) = read(write(tmp_path / "x.jsonl", line))

    assert bad == []
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "tool"]
    assert found.messages[1].content == [{"type": "text", "text": "Look"}]
    assert (found.messages[2].content, found.messages[2].metadata) == ("", {"tool_calls": call})
    assert found.messages[3].metadata == {"tool_call_id": "t"}
    assert found.metadata == {"tools": [], "model": "m"}


@pytest.mark.parametrize(
    "text", [json.dumps(SHAREGPT), json.dumps([SHAREGPT]), json.dumps([SHAREGPT], indent=2)]
)
def test_sharegpt_lines_and_arrays(tmp_path: Path, text: str) -> None:
    ((found,), bad, file) = read(write(tmp_path / "x.json", text))

    assert (bad, file.formats) == ([], {"sharegpt"})
    assert found.id == "share_0"
    assert [(message.role, message.content) for message in found.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("system", "s"),
    ]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_chatgpt_export_keeps_its_branches(tmp_path: Path, indent: Any) -> None:
    ((found, again), bad, file) = read(write(tmp_path / "c.json", json.dumps([CHATGPT, OURS], indent=indent)))

    assert (bad, file.formats) == ([], {"chatgpt", "messages"})
    assert again.id == "c1"
    assert [(m.id, m.parent_id) for m in found.messages] == [
        ("sys", None),
        ("u1", "sys"),
        ("a1", "u1"),
        ("u2", "sys"),
        ("b2", "u2"),
    ]
    assert found.metadata["current_message_id"] == "b2"
    assert found.messages[2].metadata == {"model_slug": "m"}
    assert found.created_at == datetime(2023, 11, 14, 22, 13, 20, 500000, tzinfo=timezone.utc)
    assert found.messages[4].content == "edited answer"


def test_chatgpt_parts_that_are_no_text_stay_whole() -> None:
    content = {"content_type": "multimodal_text", "parts": [{"asset_pointer": "file-1"}, "What is this?"]}
    record = {**CHATGPT, "mapping": {"n": node("n", None, text=content)}}
    (message,) = conversation_from_record(record).messages

    assert message.content == {**content, "text": "What is this?"}


def test_a_chatgpt_node_that_is_its_own_ancestor_is_refused() -> None:
    record = {**CHATGPT, "mapping": {"a": node("a", "b"), "b": node("b", "a"), "c": node("c", None)}}

    with pytest.raises(ShapeError, match="own ancestors"):
        conversation_from_record(record)


def test_a_chatgpt_tree_may_be_deep() -> None:
    keys = [f"n{number}" for number in range(20_000)]
    mapping = {key: node(key, keys[number - 1] if number else None) for number, key in enumerate(keys)}

    found = conversation_from_record({**CHATGPT, "mapping": mapping})

    assert [message.id for message in found.messages] == keys


@given(st.data())
def test_chatgpt_parents_always_come_first(data: Any) -> None:
    size = data.draw(st.integers(1, 12))
    times = st.one_of(st.none(), st.floats(0, 100), st.just(float("nan")))
    mapping = {}
    for number in range(size):
        parent = data.draw(st.one_of(st.none(), st.integers(0, number - 1))) if number else None
        role = data.draw(st.sampled_from(["user", "assistant", ""]))
        mapping[str(number)] = node(
            str(number), None if parent is None else str(parent), role, time=data.draw(times)
        )
    for item in mapping.values():
        time = item["message"] and item["message"]["create_time"]
        if time is not None and time != time:
            item["message"]["create_time"] = None
    shuffled = dict(data.draw(st.permutations(list(mapping.items()))))

    messages = conversation_from_record({**CHATGPT, "mapping": shuffled, "current_node": None}).messages

    seen: List[str] = []
    for message in messages:
        assert message.parent_id is None or message.parent_id in seen
        seen.append(message.id)
    assert sorted(seen) == sorted(key for key, item in mapping.items() if item["message"])


def test_ids_are_made_from_content_and_stay_the_same(tmp_path: Path) -> None:
    other = {"messages": [{"role": "user", "content": "Another"}]}
    good, _, _ = read(write(tmp_path / "a.jsonl", CHAT, CHAT, other))
    moved, _, _ = read(write(tmp_path / "b.jsonl", "", other, "not json", CHAT, CHAT))

    ids = [item.id for item in good]
    assert len(set(ids)) == 3
    assert {item.id for item in moved} == set(ids)
    assert [m.id for m in good[0].messages] == [m.id for m in good[1].messages]
    assert len({m.id for m in good[0].messages}) == 2


def test_the_order_of_keys_does_not_change_an_id(tmp_path: Path) -> None:
    turned = {"messages": [dict(reversed(list(item.items()))) for item in CHAT["messages"]]}
    (one,), _, _ = read(write(tmp_path / "a.jsonl", CHAT))
    (two,), _, _ = read(write(tmp_path / "b.jsonl", turned))

    assert one == two


BAD_RECORDS = [
    ("{not json", "is not valid JSON"),
    ('{"messages": [', "is not valid JSON"),
    ('{"id": 1e400}', "is not valid JSON|neither"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "is not valid JSON"),
    ("[1, 2]", "is a list, not a JSON object"),
    ("3", "is a number"),
    ("{}", 'has neither "messages"'),
    ('{"role": "user", "content": "x"}', "is a single message"),
    ('{"messages": {}}', '"messages" is an object, not a list'),
    ('{"messages": [7]}', "message 1 is a number"),
    ('{"messages": [{"content": "x"}]}', "message 1 has no known role; known are"),
    ('{"messages": [{"role": "robot", "content": "x"}]}', "message 1 has no known role"),
    ('{"messages": [{"role": "user"}]}', 'message 1 has no "content"'),
    (
        '{"messages": [{"role": "user", "content": "", "created_at": "noon"}]}',
        "created_at of message 1 is no time",
    ),
    (
        '{"messages": [{"role": "user", "content": "", "created_at": 1e300}]}',
        "created_at of message 1 is no time",
    ),
    ('{"messages": [{"role": "user", "content": "", "metadata": []}]}', "metadata of message 1 is a list"),
    ('{"messages": [{"role": "user", "content": "", "name": 3}]}', "name of message 1 is a number"),
    ('{"messages": [], "id": true}', "id is true or false"),
    ('{"messages": [], "title": 3}', "title is a number"),
    (
        '{"messages": [{"id": "a", "role": "user", "content": ""}, {"id": "a", "role": "user", "content": ""}]}',
        "two messages with the id 'a'",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BAD_RECORDS)
def test_a_bad_line_is_reported_and_the_rest_goes_on(tmp_path: Path, line: str, reason: str) -> None:
    good, (bad,), _ = read(write(tmp_path / "x.jsonl", CHAT, "", line, OURS))

    assert len(good) == 2
    assert bad.line == 3
    assert bad.element is None
    assert re.search(reason, bad.reason)
    assert str(bad).startswith("line 3: ")


@pytest.mark.parametrize("number", [str(2**63), str(-(2**63) - 1), str(2**64), "9" * 30, "9" * 300])
def test_an_integer_that_would_change_is_refused(tmp_path: Path, number: str) -> None:
    line = '{"messages": [{"role": "user", "content": %s}]}'
    good, (bad,), _ = read(write(tmp_path / "x", line % str(2**63 - 1), line % number, line % f'"{number}"'))

    assert len(good) == 2
    assert good[0].messages[0].content == 2**63 - 1
    assert str(bad) == "line 2: holds an integer outside 64 signed bits; write it as text"


def test_no_content_is_quoted_in_reports(tmp_path: Path) -> None:
    secret = "my-secret-words"
    lines = [
        '{"messages": [{"role": "user", "content": "' + secret,
        json.dumps({"messages": [{"role": secret, "content": secret}]}),
        json.dumps({secret: secret}),
        json.dumps({"messages": [{"role": "user", "content": "", "created_at": secret}]}),
    ]
    _, bad, _ = read(write(tmp_path / "x.jsonl", CHAT, *lines))

    assert len(bad) == len(lines)
    assert secret not in " ".join(map(str, bad))


def test_invalid_utf8_in_a_line_says_where(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"messages": []}\n{"messages": [{"role": "user", "content": "caf\xe9"}]}\n{"messages": []}\n'
    )
    good, (bad,), _ = read(path)

    assert len(good) == 2
    assert str(bad) == "line 2: is not valid UTF-8 at byte 47 of the record"


def test_a_line_that_is_too_long_is_skipped(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 5000}]}
    for last in (CHAT, None):
        lines = [CHAT, long] if last is None else [CHAT, long, last]
        good, (bad,), file = read(write(tmp_path / "x.jsonl", *lines), max_record_bytes=1000)

        assert len(good) == len(lines) - 1
        assert bad.line == 2
        assert "longer than 1,000 bytes" in bad.reason
        assert file.bytes_read == file.size_bytes


def test_an_element_that_is_too_long_is_skipped(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 3_000_000}]}
    path = write(tmp_path / "x.json", json.dumps([CHAT, long, OURS], indent=1))
    good, (bad,), _ = read(path, max_record_bytes=2_000_000)

    assert [item.messages[0].content for item in good] == ["What is a WAL?", "Hi"]
    assert bad.element == 2
    assert bad.line == 14


def test_elements_of_an_array_are_counted_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", "[", json.dumps(CHAT) + ",", '{"messages": 3},', json.dumps(OURS), "]")
    good, (bad,), _ = read(path)

    assert len(good) == 2
    assert str(bad) == 'element 2 (line 3): "messages" is a number, not a list'


@pytest.mark.parametrize("cut", [10, -3, -1])
def test_an_array_that_was_cut_short(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "x.json", json.dumps([CHAT, OURS])[:cut])
    good, (bad,), _ = read(path)

    assert len(good) == {10: 0, -3: 1, -1: 2}[cut]
    assert "cut short" in bad.reason


def test_things_between_the_elements_are_reported(tmp_path: Path) -> None:
    good, bad, _ = read(write(tmp_path / "x.json", f"[{json.dumps(CHAT)}, 7, {json.dumps(OURS)}]"))

    assert len(good) == 2
    assert [item.reason for item in bad] == ["there is something other than a JSON object after element 1"]


@given(st.data())
def test_the_cutter_finds_what_json_finds(tmp_path_factory: Any, data: Any) -> None:
    tricky = st.text(st.sampled_from('"\\[]{},:ab\n\té🙂'), max_size=12)
    values = st.recursive(
        st.one_of(tricky, st.integers(-(2**63), 2**63 - 1), st.none()),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(tricky, inner, max_size=3)),
        max_leaves=8,
    )
    records = data.draw(st.lists(st.dictionaries(tricky, values, max_size=3), max_size=6))
    text = json.dumps(
        records, indent=data.draw(st.sampled_from([None, 2])), ensure_ascii=data.draw(st.booleans())
    )
    path = tmp_path_factory.mktemp("cut") / "x.json"
    path.write_text(text, encoding="utf-8")
    import modules.storage.import_formats as room

    before, room._CHUNK = room._CHUNK, data.draw(st.integers(1, 40))
    try:
        with ImportFile(path) as file:
            assert [record.value for record in file._elements(1)] == records  # type: ignore[union-attr]
    finally:
        room._CHUNK = before


def test_one_pretty_printed_document(tmp_path: Path) -> None:
    for indent in (1, 4):
        ((found,), bad, _) = read(write(tmp_path / "x.json", json.dumps(OURS, indent=indent)))

        assert (found.id, bad) == ("c1", [])


def test_a_bad_first_line_does_not_hide_the_others(tmp_path: Path) -> None:
    good, (bad,), _ = read(write(tmp_path / "x.jsonl", '{"messages": [{"role":', CHAT, OURS))

    assert (len(good), bad.line) == (2, 1)


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CHAT).encode() + b"\r\n" + json.dumps(OURS).encode())
    good, bad, _ = read(path)

    assert (len(good), bad) == (2, [])
