"""``docs/ci.md`` and ``action.yml``: the shell lines are run, the inputs are flags."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from tiny_onnx import conv_chain

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
BIN = Path(sys.executable).parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="the lines are bash's")
SETTINGS = {"candidate", "allow-inconclusive", "python", "package"}  # inputs that are no flags


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def flags_of_gate():
    done = subprocess.run([BIN / "deploykit", "gate", "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--([a-z-]+)", done.stdout))


@POSIX
@pytest.mark.slow
def test_the_shell_lines_of_the_docs_run(tmp_path):
    script = "".join(blocks("sh"))
    assert script.count("deploykit gate") >= 6
    env = {key: value for key, value in os.environ.items() if not key.startswith("GITHUB_")}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "pass"
    assert {entry["unit"] for entry in json.loads((tmp_path / "benchmark.json").read_text())} == {"ms", "bytes"}
    assert json.loads((tmp_path / "bencher.json").read_text())["new"]["latency"]["value"] > 1000.0
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().get("failures") == "0"
    assert "pass" in (tmp_path / "summary.md").read_text()


def test_the_workflow_gives_inputs_that_the_action_has():
    (text,) = blocks("yaml")
    workflow = yaml.safe_load(text)
    steps = workflow["jobs"]["gate"]["steps"]
    (ours,) = [step for step in steps if step["uses"].startswith("deploykit/")]
    assert set(ours["with"]) <= set(ACTION["inputs"])
    required = {name for name, given in ACTION["inputs"].items() if given.get("required")}
    assert required <= set(ours["with"])
    uploaded = next(step for step in steps if "upload-artifact" in step["uses"])["with"]["path"].split()
    written = {ours["with"]["junit"], ours["with"]["github-benchmark"], ACTION["inputs"]["output"]["default"]}
    assert set(uploaded) == written


def test_the_inputs_of_the_action_are_flags_of_the_gate_and_all_are_passed_on():
    assert ACTION["runs"]["using"] == "composite"
    assert set(ACTION["inputs"]) - SETTINGS <= flags_of_gate()
    for given in ACTION["inputs"].values():
        assert given["description"]
        assert given.get("required") or isinstance(given["default"], str)
    install, gate = ACTION["runs"]["steps"]
    assert install["shell"] == gate["shell"] == "bash"
    passed = {name for step in (install, gate) for name in re.findall(r"inputs\.([a-z-]+)", json.dumps(step["env"]))}
    assert passed == set(ACTION["inputs"])
    for step in (install, gate):
        assert "${{" not in step["run"]  # what stands in an input must not be run
        assert all(f"${name}" in step["run"] or f"${{{name}:-" in step["run"] for name in step["env"])
    for name in set(ACTION["inputs"]) - SETTINGS:
        assert f"give --{name} " in gate["run"], name


@POSIX
@pytest.mark.parametrize(
    ("limits", "allowed", "code", "verdict"),
    [
        ({"MAX_SIZE": "1MB"}, "false", 0, "pass"),
        ({"MAX_SIZE": "+10%"}, "false", 1, "regression"),
        ({"MAX_SIZE": "10MB", "MAX_SLOWDOWN": "5%", "BUDGET": "0.2"}, "false", 3, "inconclusive"),
        ({"MAX_SIZE": "10MB", "MAX_SLOWDOWN": "5%", "BUDGET": "0.2"}, "true", 0, "inconclusive"),
        ({"MAX_SIZE": "10"}, "false", 2, None),
    ],
)
def test_the_step_of_the_action_runs(tmp_path, limits, allowed, code, verdict):
    """As the runner runs it: bash, inputs in the environment, deploykit where the step before has installed it."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    conv_chain(folder / "new model.onnx", 4), conv_chain(folder / "old.onnx", 2)
    (tmp_path / "deploykit").mkdir()
    (tmp_path / "deploykit" / "bin").symlink_to(BIN)
    step = ACTION["runs"]["steps"][1]
    env = dict.fromkeys(step["env"], "") | os.environ
    env |= {"CANDIDATE": "new model.onnx", "BASELINE": "old.onnx", "OUTPUT": "verdict.json", "JUNIT": "gate.xml"}
    env |= {"BUDGET": "60", "ALLOW_INCONCLUSIVE": allowed, **limits, "RUNNER_TEMP": str(tmp_path)}
    env |= {"GITHUB_OUTPUT": str(tmp_path / "out"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    env |= {"GITHUB_ACTIONS": "true"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    if verdict is None:
        assert not (tmp_path / "out").exists() and "allowed: bytes with a unit" in done.stderr
        return
    assert (tmp_path / "out").read_text() == f"verdict={verdict}\n"
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == verdict
    assert f"{verdict}: `new model`" in (tmp_path / "summary.md").read_text()
    kinds = {"pass": None, "regression": "::error ", "inconclusive": "::warning "}
    if kinds[verdict]:
        assert any(line.startswith(kinds[verdict]) for line in done.stdout.splitlines())
