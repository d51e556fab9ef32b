"""Reports: a table, JSON and a page that needs nothing from elsewhere."""

import json
import re

from tandem_sim.page import html_page
from tandem_sim.report import Run, Summary, summarise, table, to_json
from tandem_sim.scenario import Scenario, WorkerGroup
from tandem_sim.simulation import Simulation
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


def test_the_page_has_all_plots_and_loads_nothing() -> None:
    page = html_page("A <title>", summaries())
    assert (
        page.count("<svg") == 5
    )  # two of percentiles, utilisation of each run, requests; one rate makes no goodput
    assert "A &lt;title&gt;" in page
    assert not re.search(r"<script|<link|<img|@import|src=|href=|url\(", page)


def test_goodput_over_rate_is_drawn_when_rates_were_swept() -> None:
    one, other = summaries()
    assert "Goodput over rate" in html_page("title", [one, other | {"rate": 12.0}])
    assert "Goodput over rate" not in html_page("title", [one, other])


def test_the_json_says_what_the_table_says() -> None:
    both = summaries()
    runs = json.loads(to_json(both))["runs"]
    assert [run["policy"] for run in runs] == ["predictive", "random"]
    for run in runs:
        assert run["num_done"] == run["num_requests"] == 40
        assert run["ttft_s"]["p50"] <= run["ttft_s"]["p99"]
        assert 0 < run["utilisation"]["decode"] <= 1.01
        assert 0 < run["goodput"] <= run["rate"]
        assert len(run["curves"]["ttft_s"]) == 99
    lines = table(both).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("predictive")
