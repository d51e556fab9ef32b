"""Reports: a table, JSON and a page that needs nothing from elsewhere."""

import json
import re
from xml.etree import ElementTree as ET

from tandem_sim.page import html_page
from tandem_sim.report import Run, Summary, summarise, table, to_json
from tandem_sim.scenario import Scenario, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.svg import Chart, Series, render
from tandem_sim.synthetic import CHAT_ONLY, poisson


def summaries() -> list[Summary]:
    requests = poisson(CHAT_ONLY, rate=10, num_requests=40, seed=1)
    result = []
    for policy in ("predictive", "random"):
        scenario = Scenario(
            model="llama-3-8b",
            workers=(WorkerGroup(role="prefill", count=1), WorkerGroup(role="decode", count=1)),
            policy=policy,
            block_size=64,
        )
        measurement = Simulation(scenario).run(requests)
        result.append(summarise(Run(scenario=scenario, load=1.0, rate=10.0, measurement=measurement)))
    return result


def test_a_chart_is_well_formed_and_has_one_line_per_series() -> None:
    chart = Chart(
        title="a < b",
        x_title="x",
        y_title="y",
        series=[
            Series(name="one", points=[(0, 1), (1, 10)]),
            Series(name="two & three", points=[(0, 5), (2, 500)]),
        ],
        log_y=True,
    )
    root = ET.fromstring(render(chart))
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 640
            assert 0 <= y <= 320


def test_a_chart_of_nothing_or_of_one_value_can_be_drawn() -> None:
    for points in ([], [(1.0, 1.0)], [(0.0, 0.0)]):
        for log_y in (False, True):
            chart = Chart(
                title="t", x_title="x", y_title="y", series=[Series(name="s", points=points)], log_y=log_y
            )
            ET.fromstring(render(chart))


def test_the_page_has_all_plots_and_loads_nothing() -> None:
    page = html_page("A <title>", summaries())
    assert page.count("<svg") == 6  # two of percentiles, goodput, utilisation of each run, requests
    assert "A &lt;title&gt;" in page
    assert not re.search(r"<script|<link|<img|@import|src=|href=|url\(", page)


def test_the_json_says_what_the_table_says() -> None:
    both = summaries()
    runs = json.loads(to_json(both))["runs"]
    assert [run["policy"] for run in runs] == ["predictive", "random"]
    for run in runs:
        assert run["num_done"] == run["num_requests"] == 40
        assert run["ttft_s"]["p50"] <= run["ttft_s"]["p99"]
        assert 0 < run["utilisation"]["decode"] <= 1.01
        assert len(run["curves"]["ttft_s"]) == 99
    lines = table(both).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("predictive")
