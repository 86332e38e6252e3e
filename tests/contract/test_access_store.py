"""The tokens of the HTTP API: kept as digests, bound to tenants, ended by expiry and revocation."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from sqlalchemy import text

from modules.access_store.errors import TokenNotFoundError, TokenRejectedError
from modules.access_store.records import granted_by
from modules.access_store.tokens import key_of
from modules.store_common.errors import InvalidValueError


async def test_a_token_is_found_by_its_text_and_nothing_of_it_is_stored(storage: Any) -> None:
    made = await storage.access.create_token("ci", scopes=["write", "read"], tenant_id="acme")

    found = await storage.access.require_token(key_of(made.text))

    assert found == made.token
    assert (found.tenant_id, found.name, found.scopes) == ("acme", "ci", ("read", "write"))
    async with storage.sql_pool.session() as session:
        rows = (await session.execute(text("SELECT * FROM atlas_api_tokens"))).all()
    secret = made.text.rpartition("_")[2]
    assert secret not in str(rows)
    assert secret not in repr(made)
    assert len(secret) >= 43, "256 bits"


@pytest.mark.parametrize(
    "given",
    ["", "atlas", "atlas__", "atlas_YQ_", "atlas_!_x", "other_YQ_x", "atlas_YQ_x_y", "é", "a" * 10_000],
)
async def test_what_is_no_token_is_rejected(storage: Any, given: str) -> None:
    with pytest.raises(TokenRejectedError):
        await storage.access.require_token(key_of(given))


async def test_a_changed_token_is_rejected(storage: Any) -> None:
    made = await storage.access.create_token("ci", tenant_id="acme")
    last = "A" if made.text[-1] != "A" else "B"
    other = made.text.replace(made.text.split("_")[1], "b3RoZXI")
    for forged in (made.text[:-1] + last, other, made.text.upper()):
        with pytest.raises(TokenRejectedError):
            await storage.access.require_token(key_of(forged))


async def test_a_token_expires_by_itself(storage: Any) -> None:
    made = await storage.access.create_token("short", lifetime_seconds=0.001)

    async def until_expired() -> str:
        while True:
            try:
                await storage.access.require_token(key_of(made.text))
            except TokenRejectedError as exc:
                return exc.reason

    assert await asyncio.wait_for(until_expired(), 60) == "expired"


async def test_a_revoked_token_is_rejected_and_stays_listed(storage: Any) -> None:
    made = await storage.access.create_token("ci", tenant_id="acme")

    gone = await storage.access.revoke_token(made.token.id, tenant_id="acme")
    again = await storage.access.revoke_token(made.token.id, tenant_id="acme")

    assert gone.revoked_at is not None
    assert again == gone
    with pytest.raises(TokenRejectedError) as found:
        await storage.access.require_token(key_of(made.text))
    assert found.value.reason == "revoked"
    assert await storage.access.list_tokens(tenant_id="acme") == [gone]


async def test_tenants_do_not_see_each_others_tokens(storage: Any) -> None:
    made = await storage.access.create_token("ci", tenant_id="acme")

    assert await storage.access.list_tokens(tenant_id="other") == []
    with pytest.raises(TokenNotFoundError):
        await storage.access.revoke_token(made.token.id, tenant_id="other")
    assert (await storage.access.require_token(key_of(made.text))).revoked_at is None


async def test_lists_go_on_behind_an_id(storage: Any) -> None:
    made = [await storage.access.create_token(f"t{i}") for i in range(3)]

    first = await storage.access.list_tokens(limit=2)
    rest = await storage.access.list_tokens(after=first[-1].id)

    assert [*first, *rest] == [one.token for one in made]


async def test_use_is_written_down_at_most_once_a_minute(storage: Any) -> None:
    token = (await storage.access.create_token("ci")).token

    assert token.last_used_at is None
    assert [await storage.access.note_use(token) for _ in range(3)] == [True, False, False]
    assert (await storage.access.list_tokens())[0].last_used_at is not None


async def test_wrong_arguments_are_refused(storage: Any) -> None:
    for arguments in (
        {"scopes": ["root"]},
        {"scopes": []},
        {"lifetime_seconds": 0},
        {"lifetime_seconds": float("nan")},
        {"other_tenants": [""]},
        {"name": ""},
    ):
        with pytest.raises(InvalidValueError):
            await storage.access.create_token(**{"name": "x", **arguments})


def test_what_scopes_stand_for() -> None:
    assert granted_by(("write",)) == {"read", "write"}
    assert granted_by(("monitor",)) == {"monitor"}
    assert granted_by(("admin",)) == {"read", "write", "monitor", "admin"}


def test_a_token_is_one_word_for_shells_and_headers() -> None:
    from modules.access_store.tokens import new_token

    assert all(
        re.fullmatch(r"atlas_[\w.-]+_[\w.-]+", new_token(tenant)) for tenant in ("a", "日本", "x" * 255)
    )
    assert key_of(new_token("日本")).tenant_id == "日本"
