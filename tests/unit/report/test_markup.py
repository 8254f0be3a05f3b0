"""No text of a user becomes HTML or ends a script."""

from __future__ import annotations

import json
import math

import pytest

from production_ml.report.markup import Markup, element, escape, facts, join, script_json, table

HOSTILE = "</script><script>alert('\"&')</script><!--"


def test_text_is_escaped_and_markup_is_not():
    assert escape("<b>&") == "&lt;b&gt;&amp;"
    assert escape(Markup("<b>")) == "<b>"
    assert join(["<", Markup("<br>")]) == "&lt;<br>"


def test_attributes_are_escaped_and_named_as_html_names_them():
    found = element("td", HOSTILE, class_='a"b', data_label=HOSTILE, title="")

    assert found.startswith('<td class="a&quot;b" data-label="&lt;/script&gt;')
    assert "<script" not in found
    assert "title" not in found


def test_a_table_labels_each_cell_and_aligns_numbers():
    found = table(["Step", HOSTILE], [["1", HOSTILE]], numeric=["Step"], short=[HOSTILE])

    assert '<td class="number" data-label="Step">1</td>' in found
    assert "<script" not in found


def test_a_table_refuses_a_row_that_does_not_fit():
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["1"]])


def test_facts_are_escaped():
    assert facts([("a<b", HOSTILE)]).startswith('<dl class="facts"><dt>a&lt;b</dt><dd>&lt;/script&gt;')


def test_json_in_a_script_cannot_end_it_and_reads_back_the_same():
    data = {HOSTILE: [HOSTILE, 1.5, None, "\u2028"]}

    text = script_json(data)

    assert "<" not in text
    assert json.loads(text) == data


def test_json_in_a_script_has_no_nan():
    assert script_json([math.nan]) == '["NaN"]'
