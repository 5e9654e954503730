"""In CI a test that is skipped for want of a tool is a test that fails: what CI proves is complete.

`CAPFILT_NO_SKIPS=1`, which `.ci/run` sets, makes it so. Left as they are: what no dependency can
bring, of the machine or of data that is not part of the repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import TypeVar

import pytest

VARIABLE = "CAPFILT_NO_SKIPS"
ALLOWED = tuple(
    re.compile(reason)
    for reason in (
        r"its own environment: make test-airflow$",
        r"no kubectl",
        r"no systemd-analyze",
        r"needs ip and unshare$",
        r"needs openssl ",
        # Of the kernel, the processor, the libraries' own builds.
        r"a network of its own is not permitted here$",
        r"a file system cannot be mounted here$",
        r"torch has no packed layers here$",
        r"this Pillow cannot write the format$",
        # Data.
        r".*not part of the repository$",
        r"needs \.\./shared/",
        r"no (BERT vocabulary|photographs) at ",
        # Second opinions, whose figures are in the tests as well.
        r"could not import '(pycocoevalcap|sklearn)\.",
    )
)
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judged((yield))


def _judged(report: Report) -> Report:
    if not os.environ.get(VARIABLE) or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not any(allowed.match(reason) for allowed in ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, which {VARIABLE} forbids: {reason}"
    return report
