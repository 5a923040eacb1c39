"""The HTML page of a comparison of weightings: verdicts, the table, errors by token and head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainenv.compare.wmtp.runner import RESULTS, SETTINGS
from trainenv.report.drawing import formatting
from trainenv.report.drawing.page import head, page, section, tiles
from trainenv.report.drawing.svg import element, escaped
from trainenv.report.wmtp.td_picture import td_picture, td_words
from trainenv.types import UserError

TABLE = (
    "Means over seeds; small: the paired difference to uniform with its 95 % interval over seeds "
    "(Student's t), tinted where the whole interval is on one side of 0. The reference of rho1 and "
    "shuffled is trained before and takes its FLOPs in addition."
)
VERDICTS = (
    "A method must be ahead of uniform weights and of its controls, which have the same share or "
    "the same weights at random tokens. If a control does as well, the choice of the tokens is not "
    "what helps."
)
ERRORS = (
    "Share of the test tokens that are not the most probable one, by head and by class of the "
    "difficulty of the token: {difficulty}. Easy tokens are left."
)
TD_ERRORS = (
    "Change δ of the value at each token of the test solutions, as a share of the tokens, for "
    "right solutions (blue) and wrong ones (orange). The weight of a token is exp(δ ÷ β)."
)
_NAMES = {"exact_match": "exact match", "validation_loss": "validation loss"}
_TINTS = {1: "n good-cell", 0: "n", -1: "n bad-cell"}


def is_wmtp(folder: Path) -> bool:
    """Tell if a folder is that of a comparison of weightings."""
    return (folder / SETTINGS).is_file()


def read_wmtp(folder: Path) -> dict[str, Any]:
    """Read the results of a comparison, finished or not.

    Raises:
        UserError: The folder holds no results.
    """
    results = folder / RESULTS
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        if not (isinstance(found, dict) and {"preset", "metrics"} <= found.keys()):
            raise ValueError("no comparison of weightings")
    except (OSError, ValueError):
        raise UserError(
            f"expected the results of a comparison of weightings in {results}, found none; make "
            "them with `trainenv wmtp compare`"
        ) from None
    return found


def wmtp_page(found: Mapping[str, Any]) -> str:
    """Make the whole HTML document from the content of `results.json`."""
    methods = found["preset"]["methods"]
    body = [
        head("Weightings of multi-token prediction", found["name"], _summary(found)),
        tiles(_tiles(found)),
    ]
    if found["verdicts"]:
        listed = element("ul", *map(_verdict, found["verdicts"]), class_="goals")
        body.append(section("Verdicts", listed, about=VERDICTS))
    body.append(section("Methods", _table(found, methods), about=TABLE))
    if errors := _errors(found["errors"]):
        known = next(one for one in found["errors"].values() if one)
        about = ERRORS.format(difficulty=escaped(known["difficulty"]))
        body.append(section("Errors by token", errors, about=about))
    if drawn := _td_errors(found.get("td_errors", {})):
        body.append(section("TD errors of the critic", drawn, about=TD_ERRORS))
    if found["failed"]:
        body.append(section("Failures", _failures(found["failed"])))
    return page(f"{found['name']} · trainenv", "".join(body))


def sentence(verdict: Mapping[str, Any]) -> str:
    """Describe a verdict: `rho1 against random, exact match: +0.012 (−0.004 to 0.028), …`."""
    figure = verdict["difference"]
    words = {1: "ahead", 0: "no clear difference", -1: "behind"}[verdict["clear"]]
    interval = ""
    if formatting.finite(figure["low"]) is not None:
        low = formatting.number(figure["low"])
        interval = f" ({low} to {formatting.number(figure['high'])})"
    elif verdict["clear"] == 0:
        words = "one seed has no interval"
    return (
        f"{verdict['method']} against {verdict['against']}, {_NAMES[verdict['metric']]}: "
        f"{_signed(figure['value'])}{interval}, {words}"
    )


def _summary(found: Mapping[str, Any]) -> str:
    """Name the method with the highest exact match, and count clear verdicts."""
    metric = found["metrics"].get("exact_match")
    if metric is None:
        return "No cell is finished yet."
    values = {
        method: figure["value"]
        for method, figure in metric["methods"].items()
        if formatting.finite(figure["value"]) is not None
    }
    best = max(values, key=lambda method: float(values[method]))
    ahead = sum(verdict["clear"] == 1 for verdict in found["verdicts"])
    return (
        f"{best} has the highest exact match, {formatting.share(values[best])}. "
        f"{ahead} of {len(found['verdicts'])} verdicts are clearly in favour of a weighting."
    )


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    preset = found["preset"]
    wanted = preset["seeds"] * len(preset["methods"])
    there = len(found["rows"])
    return [
        ("Methods", str(len(preset["methods"])), "at equal FLOPs"),
        ("Seeds", str(preset["seeds"]), "paired"),
        ("Cells", f"{there} of {wanted}", f"{len(found['failed'])} failed"),
        ("Budget", formatting.flops(found["budget"]), "a run"),
        ("Reference", formatting.flops(found["reference_flops"]), "in addition, once"),
    ]


def _verdict(verdict: Mapping[str, Any]) -> str:
    name, class_ = {1: ("ahead", "met"), -1: ("behind", "missed")}.get(
        verdict["clear"], ("open", "off")
    )
    text = element("div", escaped(formatting.sentence(sentence(verdict))))
    return element("li", element("span", name, class_=f"badge {class_}"), text)


def _table(found: Mapping[str, Any], methods: Sequence[str]) -> str:
    """Make a table with one row a metric and one column a method."""
    top = [element("th", escaped(method), class_="n") for method in methods]
    rows = [_row(name, metric, methods) for name, metric in found["metrics"].items()]
    if found["seeds_variance"]:
        rows.append(_variances(found["seeds_variance"], methods))
    table = element(
        "table",
        element("thead", element("tr", "<th>Measure</th>", *top)),
        element("tbody", *rows),
        class_="matrix",
    )
    return element("div", table, class_="box")


def _row(name: str, metric: Mapping[str, Any], methods: Sequence[str]) -> str:
    cells = []
    for method in methods:
        text = _written(name, metric["methods"][method]["value"])
        class_ = "n"
        difference = metric["against_uniform"].get(method)
        if difference is not None and formatting.finite(difference["low"]) is not None:
            low = _written(name, difference["low"])
            high = _written(name, difference["high"])
            text += f"<small>{_written(name, difference['value'])} ({low} to {high})</small>"
            class_ = _TINTS[metric["better"] * _side(difference)]
        cells.append(element("td", text, class_=class_))
    return element("tr", element("th", escaped(metric["what"]), scope="row"), *cells)


def _variances(variances: Mapping[str, Any], methods: Sequence[str]) -> str:
    cells = [element("td", _plain(variances.get(method)), class_="n") for method in methods]
    title = element("th", "variance of ln validation loss over seeds", scope="row")
    return element("tr", title, *cells)


def _side(figure: Mapping[str, Any]) -> int:
    """Return 1 if the whole interval is above 0, −1 if it is below, else 0."""
    return int(figure["low"] > 0) - int(figure["high"] < 0)


def _written(name: str, value: Any) -> str:
    if name == "flops":
        known = formatting.finite(value)
        if known is not None and known < 0:
            return f"−{formatting.flops(-known)}"
        return formatting.flops(value)
    if name == "memory":
        known = formatting.finite(value)
        if known is None:
            return formatting.MISSING
        return f"{formatting.number(known / 2**20, 2)} MiB"
    if name in ("steps", "training_seconds"):
        return formatting.number(value, 1)
    return _plain(value)


def _plain(value: Any) -> str:
    known = formatting.finite(value)
    if known is None:
        return formatting.MISSING
    if known and abs(known) < 0.001:
        return f"{known:.2e}".replace("-", "−")
    return formatting.number(known)


def _signed(value: Any) -> str:
    text = formatting.number(value)
    known = formatting.finite(value)
    if known is not None and known > 0:
        return f"+{text}"
    return text


def _errors(found: Mapping[str, Any]) -> str:
    """Make a table of errors: a row for each method and head, a column for each class."""
    known = {method: one for method, one in found.items() if one}
    if not known:
        return ""
    classes = max(len(row) for one in known.values() for row in one["errors"])
    top = [element("th", f"class {place + 1}", class_="n") for place in range(classes)]
    rows = []
    for method, one in known.items():
        for place, values in enumerate(one["errors"]):
            cells = [element("td", formatting.share(value), class_="n") for value in values]
            title = element("th", f"{escaped(method)}<small>head {place}</small>", scope="row")
            rows.append(element("tr", title, *cells))
    table = element(
        "table",
        element("thead", element("tr", "<th>Method</th>", *top)),
        element("tbody", *rows),
        class_="matrix",
    )
    return element("div", table, class_="box tall")


def _td_errors(found: Mapping[str, Any]) -> str:
    """Draw a histogram for each method with a value head."""
    return "".join(
        element("h3", escaped(method)) + td_picture(one) + element("p", td_words(one))
        for method, one in found.items()
    )


def _failures(failed: Sequence[Mapping[str, Any]]) -> str:
    titles = ("Method", "Seed", "Ended", "Error")
    rows = [
        element(
            "tr",
            *(
                element("td", escaped(one[key] if one[key] is not None else ""))
                for key in ("method", "seed", "ended", "error")
            ),
        )
        for one in failed
    ]
    top = element("thead", element("tr", *(element("th", title) for title in titles)))
    return element("div", element("table", top, element("tbody", *rows)), class_="box tall")
