from xml.etree import ElementTree as ET

from tandem_load import html
from tandem_load.svg import Chart, Series


def test_a_page_is_well_formed_and_whatever_is_in_it_is_text() -> None:
    chart = Chart(title="<x>", x_title="&", y_title="y", series=[Series(name="<s>", points=[(1, 2), (3, 4)])])
    page = html.page(
        "<title>",
        "a & b",
        [
            html.heading("<h>"),
            html.paragraph("<p>"),
            html.table(["", "<head>"], [["<row>", "1 < 2"]], text_columns=(1,)),
            html.definitions({"<word>": "<meaning>"}),
            html.charts([chart]),
            html.preformatted("<pre>"),
        ],
    )
    body = page.replace("<!doctype html>\n", "").replace('<meta charset="utf-8">', "")
    body = body.replace('<meta name="viewport" content="width=device-width, initial-scale=1">', "")
    texts = "".join(ET.fromstring(body).itertext())
    for text in (
        "<title>",
        "a & b",
        "<h>",
        "<p>",
        "<head>",
        "<row>",
        "1 < 2",
        "<word>",
        "<meaning>",
        "<x>",
        "<pre>",
    ):
        assert text in texts
