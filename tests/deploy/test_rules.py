"""The alerting and recording rules, without a server."""

import re
import subprocess

import pytest
import yaml

from prismoe.benchmarks.monitoring.prometheus import DEPLOY, RULES, program

TESTS = DEPLOY / "prometheus" / "rules.test.yaml"
RUNBOOKS = DEPLOY.parent / "docs" / "runbooks.md"
ALERTS = [
    rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


@pytest.mark.prometheus
def test_the_rules_pass_their_unit_tests() -> None:
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(TESTS)]):
        run = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0 and "SUCCESS" in run.stdout, run.stdout + run.stderr


def test_every_alert_has_a_unit_test_that_fires_it() -> None:
    tests = yaml.safe_load(TESTS.read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    for alert in ALERTS:
        outcomes = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert["alert"]]
        assert {True, False} <= set(outcomes), alert["alert"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_a_paragraph_in_the_runbooks(alert: dict[str, dict[str, str]]) -> None:
    anchor = alert["annotations"]["runbook"].removeprefix("docs/runbooks.md#")
    headings = re.findall(r"^## (\w+)\n\n\S", RUNBOOKS.read_text(), re.M)
    assert anchor in [heading.lower() for heading in headings]
