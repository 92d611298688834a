"""What the documents say must be what the program does."""

import re

import pytest

from checkout import ROOT
from cnnbench.cases.workload import load_workload
from cnnbench.cli.parameters import describe_parameters
from cnnbench.results.record import KILLED

WORKLOADS = sorted(path.parent for path in ROOT.glob("workload/*/workload.yaml"))
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("doc/*.md"), *ROOT.glob("workload/*/README.md")])


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda path: path.name)
def test_readme_lists_the_parameters_that_there_are(workload):
    assert describe_parameters(load_workload(workload)).strip() in (workload / "README.md").read_text()


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda path: path.name)
def test_readme_explains_the_reason_that_points_to_it(workload):
    assert KILLED in (workload / "README.md").read_text()


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda path: path.name)
def test_kpi_script_is_the_one_at_the_top(workload):
    assert (workload / "kpi.sh").resolve() == ROOT / "kpi.sh"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(document):
    assert re.findall(r"@[A-Z]+@", document.read_text()) == []
