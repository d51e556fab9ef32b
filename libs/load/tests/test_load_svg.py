from xml.etree import ElementTree as ET

from tandem_load.svg import Chart, Series, render


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
