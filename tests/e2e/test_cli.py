"""The command line as a whole: help, exit codes, one line for every error, JSON and nothing else, signals."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any, List

import pytest

COMMANDS = [
    ["init"],
    ["migrate"],
    ["current"],
    ["history"],
    ["health"],
    ["doctor"],
    ["import"],
    ["export"],
    ["conversations"],
    ["conversations", "list"],
    ["conversations", "show"],
    ["search"],
    ["kv"],
    ["kv", "get"],
    ["kv", "set"],
    ["kv", "delete"],
    ["kv", "list"],
    ["kv", "incr"],
    ["tasks"],
    *(["tasks", name] for name in ("list", "ready", "show", "create", "move", "comment", "depend", "search")),
    ["vectors"],
    ["vectors", "list"],
    ["vectors", "info"],
    ["vectors", "search"],
    ["vectors", "rebuild"],
    ["vectors", "recall"],
    ["setup"],
    ["serve"],
    ["token"],
    ["token", "create"],
    ["token", "list"],
    ["token", "revoke"],
    ["prune"],
    ["backup"],
    ["worker"],
    ["scheduler"],
    ["demo"],
    ["embed"],
    ["relay"],
    ["reconcile"],
    ["jobs"],
    ["outbox"],
]
ITSELF = {
    "test_init_makes_a_private_place_once",
    "test_configuration_by_file_environment_and_option",
    "test_stored_text_cannot_steer_the_terminal",
}
MANUAL = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


@pytest.fixture
def warm(request: pytest.FixtureRequest) -> Any:
    """Some of these run the installed program itself, imports and all."""
    return None if request.node.originalname in ITSELF else request.getfixturevalue("_warm_program")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_a_place_in_the_manual(cli: Any, words: List[str]) -> None:
    help_text = cli(*words, "--help").stdout

    assert help_text.startswith(f"Usage: atlas-storage {' '.join(words)}")
    for option in ("--url", "--config", "--tenant", "--json", "--debug"):
        assert option in help_text
    assert f"`atlas-storage {' '.join(words)}" in MANUAL.read_text(encoding="utf-8")


def test_the_manual_names_every_command(cli: Any) -> None:
    shown = cli("--help").stdout.partition("Commands:")[2].split("\n")
    names = {line.split()[0] for line in shown if line.startswith("  ") and not line.startswith("   ")}

    assert names == {words[0] for words in COMMANDS}


def test_without_arguments_it_helps(cli: Any) -> None:
    assert "Commands:" in cli().stdout
    assert "incr" in cli("kv", code=2).stderr
    assert cli("--version").stdout.count(".") >= 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "No such command"),
        (["kv", "get", "only-a-namespace"], 2, "Missing argument"),
        (["--nonsense", "health"], 2, "No such option"),
        (["kv", "list", "--limit", "many"], 2, "--limit"),
        (["kv", "list", "n", "--limit", "0"], 2, "--limit"),
        (["--url", "mysql://root:hunter2@db/x", "current"], 2, "unknown scheme"),
        (["--url", "postgresql://u:hunter2@h:port/x", "current"], 2, "url"),
        (["--config", "absent.yaml", "current"], 2, "absent.yaml"),
        (["--tenant", " ", "kv", "list"], 2, "tenant"),
        (["kv", "get", "n", "absent"], 1, "no key 'absent'"),
        (["kv", "delete", "n", "absent"], 1, "no key 'absent'"),
        (["kv", "list", "--prefix", "a"], 2, "--prefix needs a namespace"),
        (["conversations", "show", "absent"], 1, "no conversation 'absent'"),
        (["conversations", "list", "--status", "lost"], 2, "active, archived, deleted"),
        (["import", "absent.jsonl"], 2, "absent.jsonl does not exist"),
        (["import", "."], 2, "is a directory"),
        (["export", "."], 2, "is a directory"),
        (["backup", "copy"], 1, "there is no database"),
        (["--url", "sqlite:///:memory:", "backup", "copy"], 2, "in memory"),
        (
            ["--url", "postgresql://u:hunter2@h/x", "backup", "copy"],
            2,
            "pg_dump --format=custom --file=copy --host=h",
        ),
        (["--url", "sqlite:////proc/nowhere/x.sqlite3", "init"], 1, "/proc/nowhere"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    cli: Any, arguments: List[str], code: int, message: str
) -> None:
    result = cli(*arguments, code=code)

    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "hunter2" not in result.stderr


def test_wrong_environment_names_the_variable(cli: Any) -> None:
    result = cli("current", code=2, ATLAS_SQL_PROT="5432")

    assert "ATLAS_SQL_PROT" in result.stderr
    assert "ATLAS_SQL_PORT" in result.stderr


def test_debug_shows_where_it_happened(cli: Any) -> None:
    path = cli.directory / "not-a-database"
    path.write_bytes(b"this is not a database file at all, is it?" * 100)
    short = cli("--url", f"sqlite:///{path}", "kv", "list", code=1)
    long = cli("--url", f"sqlite:///{path}", "kv", "list", "--debug", code=1)

    assert len(short.stderr.splitlines()) == 1
    assert "Traceback" in long.stderr


def test_a_required_tenant_is_asked_for(cli: Any) -> None:
    required = {"ATLAS_REQUIRE_TENANT_CONTEXT": "true"}
    result = cli("kv", "set", "n", "k", "1", code=2, **required)

    assert result.stderr == "error: this configuration requires a tenant; give --tenant NAME\n"
    cli("kv", "set", "n", "k", "1", "--tenant", "acme", **required)
    assert cli("kv", "get", "n", "k", "--tenant", "acme", **required).stdout == "1\n"
    cli("kv", "get", "n", "k", "--tenant", "other", code=1, **required)


def test_shared_options_may_stand_anywhere_and_the_later_one_wins(cli: Any) -> None:
    cli("--tenant", "acme", "kv", "set", "n", "k", "1")

    assert cli("kv", "--tenant", "acme", "get", "n", "k").stdout == "1\n"
    assert cli("--tenant", "other", "kv", "get", "--tenant", "acme", "n", "k", "--json").json["value"] == 1
    cli("--tenant", "acme", "kv", "get", "n", "k", "--tenant", "other", code=1)


def test_configuration_by_file_environment_and_option(cli: Any) -> None:
    cli.write("mine.yaml", "storage:\n  sql:\n    url: sqlite:///from-file.sqlite3")

    assert cli("init", "--config", "mine.yaml", "--json").json["url"] == "sqlite:///from-file.sqlite3"
    assert (
        cli("init", "--json", ATLAS_SQL_URL="sqlite:///from-env.sqlite3")
        .json["url"]
        .endswith("from-env.sqlite3")
    )
    by_option = cli(
        "init", "--config", "mine.yaml", "--url", "sqlite:///o.sqlite3", "--json", ATLAS_SQL_URL="sqlite:///e"
    )
    assert by_option.json["url"] == "sqlite:///o.sqlite3"
    assert {path.name for path in cli.directory.glob("*.sqlite3")} == {
        "from-file.sqlite3",
        "from-env.sqlite3",
        "o.sqlite3",
    }


def test_init_makes_a_private_place_once(cli: Any) -> None:
    assert cli("init", "--json").json["applied"]
    assert cli("init", "--json").json["applied"] == []
    assert (cli.directory / ".atlas" / ".gitignore").read_text() == "*\n"
    assert (cli.directory / ".atlas").stat().st_mode & 0o077 == 0


def test_keys_on_each_database(cli_on: Any) -> None:
    cli = cli_on
    assert cli("kv", "set", "n", "doc", '{"a": [1, null]}', "--json").json == {
        "namespace": "n",
        "key": "doc",
        "version": 1,
    }
    assert cli("kv", "get", "n", "doc", "--json").json["value"] == {"a": [1, None]}
    cli("kv", "set", "n", "word", "plain text")
    assert cli("kv", "get", "n", "word").stdout == "plain text\n"
    cli("kv", "set", "n", "number", "5", "--text")
    assert cli("kv", "get", "n", "number", "--json").json["value"] == "5"
    cli("kv", "set", "n", "piped", "-", stdin=b"[1]")
    assert cli("kv", "get", "n", "piped", "--json").json["value"] == [1]
    cli("kv", "set", "n", "doc", "2", "--if-absent", code=1)
    cli("kv", "set", "n", "soon", "1", "--ttl", "1000")
    assert cli("kv", "get", "n", "soon", "--json").json["expires_at"] is not None
    assert [cli("kv", "incr", "n", "count", "--by", by).stdout for by in ("2", "40")] == ["2\n", "42\n"]
    assert [item["key"] for item in cli("kv", "list", "n", "--json").lines] == [
        "count",
        "doc",
        "number",
        "piped",
        "soon",
        "word",
    ]
    assert [item["key"] for item in cli("kv", "list", "n", "--prefix", "d", "--json").lines] == ["doc"]
    assert cli("kv", "list", "--json").lines == [{"namespace": "n"}]
    assert "there are more" in cli("kv", "list", "n", "--limit", "2").stderr
    cli("kv", "delete", "n", "doc")
    cli("kv", "get", "n", "doc", code=1)
    assert cli("kv", "incr", "n", "word", code=1).stderr.count("\n") == 1


def test_the_schema_on_each_database(cli_on: Any, databases: Any) -> None:
    cli = cli_on
    cli.url = databases.url(cli.url.partition(":")[0])
    state = cli("current", "--json", code=1).json
    pending = state["pending"]
    assert (state["current"], state["up_to_date"], pending[-1]) == (None, False, state["head"])
    assert "run: atlas-storage migrate" in cli("current", code=1).stdout
    assert [item["applied"] for item in cli("history", "--json").lines] == [False] * len(pending)
    assert cli("migrate", "--json").json["applied"] == pending
    assert cli("migrate").stdout == "Nothing to do: the schema is up to date.\n"
    assert cli("current", "--json").json["up_to_date"]
    assert [item["applied"] for item in cli("history", "--json").lines] == [True] * len(pending)
    assert "CREATE TABLE atlas_messages" in cli("migrate", "--sql").stdout
    assert cli("health", "--json").json["overall"] == "healthy"
    assert cli("doctor", "--json").json["ok"]


def test_looking_makes_no_database(cli: Any) -> None:
    cli("current", code=1)
    cli("history")
    cli("health", code=1)
    cli("doctor", code=1)
    cli("migrate", "--sql")

    assert list(cli.directory.iterdir()) == []


def test_stored_text_cannot_steer_the_terminal(cli: Any) -> None:
    cli("kv", "set", "n", "evil", "\x1b[2J\x1b]0;title\x07 [bold]text[/bold] \u202e")
    shown = cli("kv", "list", "n").stdout

    assert "[bold]text[/bold]" in shown
    assert not set(shown) & set("\x1b\x07\u202e")


def test_a_reader_that_has_enough_is_no_error(cli: Any) -> None:
    content = [{"role": "user", "content": "line " * 200}] * 2000
    cli.write("long.jsonl", {"id": "long", "messages": content})
    cli("import", "long.jsonl")
    command = cli.command("conversations", "show", "long")
    with subprocess.Popen(
        command, cwd=cli.directory, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        errors = child.stderr.read()

    assert (child.returncode, errors) == (0, b"")


def _obey_interrupts() -> None:
    # a run in the background of a shell hands down "ignore SIGINT", and Python leaves that as it is
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_ends_cleanly(cli: Any, number: int) -> None:
    """The import waits for a pipe that nobody finishes; what came before stays."""
    pipe = cli.directory / "pipe"
    os.mkfifo(pipe)
    command = cli.command("import", "pipe")
    with (
        subprocess.Popen(
            command,
            cwd=cli.directory,
            env=cli.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_obey_interrupts,
        ) as child,
        pipe.open("wb", buffering=0) as writer,
    ):  # opens when the child has opened it
        writer.write(b'{"id": "first", "messages": [{"role": "user", "content": "kept"}]}\n{"id": "second",')
        _wait_until_read(writer, child)
        child.send_signal(number)
        output, errors = child.communicate(timeout=60)

    assert child.returncode == 130, errors
    assert (output, errors) == (b"", b"interrupted\n")
    assert [item["id"] for item in cli("conversations", "list", "--json").lines] in (["first"], [])


def _left_in(writer: Any) -> int:
    """Return how many bytes of a pipe nobody has read yet."""
    left = fcntl.ioctl(writer.fileno(), termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", left)[0])


def _wait_until_read(writer: Any, child: Any) -> None:
    """Return when the child has taken everything out of the pipe and waits for more.

    That is when its main thread sleeps and takes no time of a processor for a while: one that sleeps for a moment may be
    importing a module, and an interrupt there leaves a file to the garbage collector, which warns.
    """
    end = time.monotonic() + 60
    before, since = "", time.monotonic()
    while time.monotonic() < end:
        fields = Path(f"/proc/{child.pid}/task/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        state, spent = fields[0], " ".join(fields[11:13])
        if _left_in(writer) or state != "S" or spent != before:
            before, since = spent, time.monotonic()
        elif time.monotonic() - since > 0.5:
            return
        time.sleep(0.01)
    raise AssertionError("the child never waited")
