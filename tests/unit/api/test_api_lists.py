"""Lists a piece at a time, and by label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.api.native.paging import PageQuery, page
from casemate.errors import InvalidSpec


async def all_pages(client, path, what, **params):
    found, sizes, cursor = [], [], {}
    while True:
        answer = await client.get(path, params={**params, **cursor})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found += body[what]
        sizes.append(len(body[what]))
        if body["next"] is None:
            return found, sizes
        cursor = {"cursor": body["next"]}


def test_sandboxes_come_in_pages_and_once_each(serve):
    async def scenario(world):
        made = [await world.create() for _ in range(7)]
        found, sizes = await all_pages(world.client, "/v1/sandboxes", "sandboxes", limit=3)
        assert [sandbox["id"] for sandbox in found] == made
        assert sizes == [3, 3, 1]
        images, _ = await all_pages(world.client, "/v1/images", "images", limit=2)
        assert [image["version"] for image in images] == [1, 2, 3]

    serve(scenario)


def test_all_labels_that_are_given_must_match(serve):
    async def scenario(world):
        first = await world.create(labels={"a": "1", "b": "2=3"})
        second = await world.create(labels={"a": "1"})
        await world.create()

        async def found(*labels):
            answer = await world.client.get("/v1/sandboxes", params={"label": labels})
            return [sandbox["id"] for sandbox in answer.json()["sandboxes"]]

        assert await found("a=1") == await found("a") == [first, second]
        assert await found("a=1", "b=2=3") == [first]
        assert await found("a=") == await found("c") == await found("a=1", "a=2") == []

    serve(scenario)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "cursor=x", "cursor=e30", "cursor=WyJ4Il0", "label==1", "cursor=" + "a" * 600]
)
def test_a_page_that_makes_no_sense(serve, query):
    async def scenario(world):
        await world.create()
        answer = await world.client.get(f"/v1/sandboxes?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid-spec")

    serve(scenario)


@given(st.lists(st.tuples(st.integers(), st.text()), unique=True), st.integers(1, 5))
def test_any_list_is_the_sum_of_its_pages(rows, limit):
    rows.sort()
    found, cursor = [], None
    while True:
        shown, cursor = page(rows, PageQuery(limit=limit, cursor=None).model_copy(update={"cursor": cursor}), tuple)
        found += shown
        if cursor is None:
            break
    assert found == rows


@given(st.text(max_size=100))
def test_any_cursor_is_understood_or_refused(text):
    try:
        page([(1, "a"), (2, "b")], PageQuery(limit=1, cursor=text), tuple)
    except InvalidSpec:
        return
