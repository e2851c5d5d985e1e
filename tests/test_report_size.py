"""A thousand records: how large and how long."""

import resource
import subprocess
import sys

import pytest
from full_records import thousand_records
from parsed_page import Page
from synthetic_records import write_records

from deploykit.charts import chart_library
from deploykit.report import write_report


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    records = thousand_records()
    assert len(records) == 1000
    return write_records(tmp_path_factory.mktemp("thousand"), records)


def test_a_thousand_records_stay_small(thousand, tmp_path):
    text = write_report([thousand], tmp_path / "r.html").read_text("utf-8")

    assert len(text.encode()) - len(chart_library().encode()) < 3_000_000
    assert len(Page(text).rows) > 330
    for said in ("24 of 330 models with pictures", "12 of 330 models by layer", "12 of 95 rankings of layers"):
        assert f"{said} are shown" in text


def test_markdown_of_a_thousand_records_fits_a_comment(thousand, tmp_path):
    for name, baseline in (("alone", []), ("compared", [thousand])):
        text = write_report([thousand], tmp_path / f"{name}.md", baseline=baseline).read_text("utf-8")
        assert 10_000 < len(text) < 65_536  # what GitHub takes
        assert text.count("<details>") == text.count("</details>")
    assert "more rows are in the HTML, CSV and JSON forms |" in text


def test_a_thousand_records_take_five_seconds_at_most(thousand, tmp_path):
    """The whole command, by its processor time: what else runs beside the tests does not count."""
    command = [sys.executable, "-m", "deploykit", "report", str(thousand), "-o", str(tmp_path / "r.html")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) <= 5.0
