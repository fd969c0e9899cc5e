"""Charts that a guest has made up: None, whatever JSON it sends."""

from __future__ import annotations

import json

import pytest

from casemate.sdk.charts import CHART
from casemate.sdk.code import Result

AXIS = '{"label": null, "scale": "linear", "ticks": []}'
PIE = '{"type":"pie","title":null,"series":[{"label":null,"slices":[{"label":"a","share":SHARE}]}]}'
LINE = '{"type":"line","title":null,"x":AXIS,"y":AXIS,"series":[{"label":null,"x":[1],"y":[VALUE]}]}'


def shown(body: str) -> Result:
    return Result.from_json({"type": "display", "data": {CHART: json.loads(body)}})


def pie(share: str) -> Result:
    return shown(PIE.replace("SHARE", share))


def line(y: str) -> Result:
    return shown(LINE.replace("AXIS", AXIS).replace("VALUE", y))


@pytest.mark.parametrize("share", ["1" + "0" * 400, "1e999", "NaN", '"nan"', '"0.5"', "true", "-5", "null"])
def test_shares_that_are_none(share: str) -> None:
    assert pie("0.5").chart is not None
    assert pie("1.0000000000000002").chart is not None  # a circle, rounded
    assert pie(share).chart is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1e999", "1" + "0" * 400])
def test_numbers_that_json_does_not_have(value: str) -> None:
    assert line("null").chart is not None
    assert line(value).chart is None
