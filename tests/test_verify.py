"""The rooms ``verify``, ``emulation``, ``emulated_worker``, ``qemu``, ``arm64_root``: real processes and emulators.

What saturates is computed here in NumPy, by the instruction's definition. Emulated runs are ``slow``.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import endless_loop, matmul, save_graph

from deploykit import data, emulated_worker, environment
from deploykit.arm64_root import ONNXRUNTIME, Arm64Root, find_arm64_root, prepare_arm64_root
from deploykit.artifact import Preprocess
from deploykit.cli import main
from deploykit.data.dataset import Dataset
from deploykit.emulation import Job, Machine, machines_of, run_on
from deploykit.errors import EmulatorError, InputError, NotComparableError, OutputError, UnknownNameError
from deploykit.files import write_json
from deploykit.qemu import CPUS, Emulator, cpu_named, find_emulator, unsupported_features
from deploykit.report import collect
from deploykit.results import CpuRun, read_record
from deploykit.runtime import create_session
from deploykit.verify import VerifyOptions, verify_onnx

X86 = sys.platform == "linux" and environment.describe()["machine"] == "x86_64"
needs_x86 = pytest.mark.skipif(not X86, reason="emulates x86 on x86")
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None, reason="qemu-user-static is not installed here"
)
posix = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
SATURATES = "avx2" in environment.cpu_features() and not {"avx512_vnni", "avx_vnni"} & set(environment.cpu_features())
UNIT = Preprocess(size=(8, 8), channels="L", scale=1 / 255, mean=(0.0,), std=(1.0,))
RATIO = 0.01  # a step of the weights

# Class 0 has pairs of full weights, whose products with bright pixels do not fit into 16 bits; class 1 has none.
WEIGHTS = np.zeros((2, 64), np.int8)
WEIGHTS[0, :32], WEIGHTS[1, :40:2] = 127, 127


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """No process and no temporary file stays behind, whatever a test does."""
    folder = tmp_path / "temporary files"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert psutil.Process().children(recursive=True) == []
    assert list(folder.glob("*deploykit*")) == []  # ONNX Runtime writes a file of its own


def full_range(path, weights=WEIGHTS):
    """A convolution over 8×8 pixels, in QDQ form with uint8 activations and full-range int8 weights."""
    constants = {
        **{"xs": np.float32(1 / 255), "xz": np.uint8(0), "w": weights.reshape(2, 1, 8, 8)},
        **{"ws": np.float32(RATIO), "wz": np.int8(0), "ys": np.float32(0.2), "yz": np.uint8(0)},
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "ys", "yz"], ["cd"]),
        helper.make_node("Flatten", ["cd"], ["y"]),
    ]
    ends = ([("x", TensorProto.FLOAT, ["N", 1, 8, 8])], [("y", TensorProto.FLOAT, ["N", 2])])
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    metadata = {
        "deploykit.preprocess": json.dumps(UNIT.to_json()),
        "deploykit.labels": json.dumps(["zero", "one"]),
    }
    return save_graph(path, nodes, *ends, stored, metadata=metadata)


def pictures(count=12):
    """Half of them bright, where products saturate, half of them dark, where they do not."""
    images = np.random.default_rng(0).integers(0, 100, (count, 8, 8), dtype=np.uint8)
    images[::2] = 255 - images[::2] // 4
    return Dataset.from_arrays("squares", images, np.zeros(count, np.int64), ("zero", "one"))


def wanted(images, *, saturating):
    """Logits (N, 2) by integer arithmetic; VPMADDUBSW adds pairs of u8 × s8 products in 16 bits and saturates."""
    products = images.reshape(len(images), 1, 64).astype(np.int64) * WEIGHTS
    pairs = products[..., ::2] + products[..., 1::2]
    sums = np.clip(pairs, -(2**15), 2**15 - 1).sum(-1) if saturating else pairs.sum(-1)
    return np.round(sums * RATIO / 255 / 0.2) * 0.2


def flips_by_arithmetic(chosen):
    images = np.asarray(chosen.pictures(range(len(chosen))))
    right, other = (wanted(images, saturating=how).argmax(1) for how in (False, True))
    return int((right != other).sum())


def here(*, timeout_command=None):
    """The worker as a process of this machine's own Python."""
    wheels = [str(Path(module.__file__).parents[1]) for module in (np, __import__("onnxruntime"))]
    return Machine(CPUS["arm64"], timeout_command or (sys.executable,), tuple(wheels), None, foreign=False)


# Natively


def test_an_unoptimised_session_tells_full_range_weights_on_a_cpu_that_saturates(tmp_path):
    model, given = full_range(tmp_path / "m.onnx"), pictures()
    record = verify_onnx(model, given)
    (run,) = record.runs
    expected = flips_by_arithmetic(given) if SATURATES else 0
    assert flips_by_arithmetic(given) == 6
    assert (run.cpu, run.optimised, run.emulator, run.flips) == ("native", False, None, expected)
    assert record.verdict == ("differs" if SATURATES else "same")
    assert len({flip.sample for flip in run.flipped}) == expected
    assert all(flip.sample % 2 == 0 and (flip.native, flip.there) == ("one", "zero") for flip in run.flipped)
    images = np.asarray(given.pictures(range(12)))
    answers = [wanted(images, saturating=how) for how in (False, SATURATES)]
    assert run.max_abs == pytest.approx(np.abs(answers[0] - answers[1]).max(), abs=1e-4)
    assert record.largest_logit == pytest.approx(np.abs(answers[1]).max(), abs=1e-4)
    assert read_record(write_json(tmp_path / "r.json", record.to_document())) == record


def test_each_run_is_compared_with_the_reference_by_the_classes_names(tmp_path):
    """A float model that answers by the brightness of the first pixels, and names its classes in the other order."""
    given, weights = pictures(), np.zeros((64, 2), np.float32)
    weights[:, 1] = WEIGHTS[0]  # the class that is "zero" here
    weights[:, 0] = WEIGHTS[1]
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    ends = ([("x", TensorProto.FLOAT, ["N", 1, 8, 8])], [("y", TensorProto.FLOAT, ["N", 2])])
    about = {"deploykit.preprocess": json.dumps(UNIT.to_json()), "deploykit.labels": json.dumps(["one", "zero"])}
    reference = save_graph(tmp_path / "f.onnx", nodes, *ends, [numpy_helper.from_array(weights, "w")], metadata=about)
    record = verify_onnx(full_range(tmp_path / "m.onnx"), given, reference=reference)
    assert (record.reference, record.runs[0].reference_agreement) == ("f.onnx", 1.0)
    assert record.reference_agreement == (0.5 if SATURATES else 1.0)
    wide = np.zeros((64, 3), np.float32)
    ends = (ends[0], [("y", TensorProto.FLOAT, ["N", 3])])
    other = save_graph(tmp_path / "o.onnx", nodes, *ends, [numpy_helper.from_array(wide, "w")])
    with pytest.raises(InputError, match=r"tells 3 classes apart, m.onnx has 2"):
        verify_onnx(full_range(tmp_path / "m.onnx"), given, reference=other, preprocess=UNIT)


def test_the_report_shows_where_predictions_are_the_same(tmp_path):
    record = verify_onnx(full_range(tmp_path / "m.onnx"), pictures(), options=VerifyOptions(max_flips="100%"))
    same = replace(record, runs=(*record.runs, replace(record.runs[0], cpu="arm64", optimised=True)))
    other = replace(record, allowed_flips=0, runs=(replace(same.runs[1], flips=6), CpuRun("z80", True, error="slow")))
    write_json(tmp_path / "a/r.json", same.to_document())
    (row,) = collect([tmp_path / "a"]).rows
    assert (row.name, row.precision, row.same_on, row.warnings) == ("m.onnx", "int8", "unoptimised, arm64", ())
    write_json(tmp_path / "b/r.json", other.to_document())
    (row,) = collect([tmp_path / "b"]).rows
    assert (row.same_on, row.caveats("model")) == (
        None,
        ["6 of 12 predictions differ on arm64", "not verified on z80: slow"],
    )


def test_seven_bit_weights_are_the_same_and_samples_follow_the_seed(tmp_path):
    """2 · 255 · 63 fits into 16 bits."""
    model, given = full_range(tmp_path / "m.onnx", WEIGHTS // 2), pictures(200)
    first, again, other = (verify_onnx(model, given, options=VerifyOptions(seed=seed)) for seed in (0, 0, 1))
    assert first.verdict == "same" and (first.runs[0].flips, first.runs[0].agreement) == (0, 1.0)
    assert (first.samples, first.precision, first.split) == (64, "int8", "all")
    assert first.dataset_digest == again.dataset_digest != other.dataset_digest
    versions = first.environment["versions"]
    assert first.onnxruntime == versions.get("onnxruntime-gpu", versions.get("onnxruntime"))


def test_the_limit_is_a_number_or_a_share_rounded_down():
    allowed = {
        text: VerifyOptions(max_flips=text).allowed_flips(250)
        for text in ("0", "3", "0.5%", " 1 % ", "100%", "0.39%", ".8%")
    }
    assert allowed == {"0": 0, "3": 3, "0.5%": 1, " 1 % ": 2, "100%": 250, "0.39%": 0, ".8%": 2}
    for text in ("", "half", "-1", "0.5", "101%", "nan%", "²"):
        with pytest.raises(InputError, match="allowed: a number of samples, or a share"):
            VerifyOptions(max_flips=text)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("samples", 0, "1 or more"),
        ("seed", -1, "seed -1"),
        ("timeout_s", 0.0, "more than 0 seconds"),
        ("timeout_s", float("inf"), "finite"),
        ("threads", 0, "allowed: 1 to"),
        ("cpus", (), "no CPU"),
    ],
)
def test_options_that_make_no_sense_are_refused(field, value, reason):
    with pytest.raises(InputError, match=reason):
        VerifyOptions(**{field: value})


def test_exit_codes_and_output_of_the_command(tmp_path, capsys):
    model, given = full_range(tmp_path / "m.onnx"), pictures()
    np.savez(tmp_path / "p.npz", images=np.asarray(given.pictures(range(12))), labels=given.targets)
    command = [
        "verify",
        str(model),
        "--data",
        str(tmp_path / "p.npz"),
        "-o",
        str(tmp_path / "r.json"),
        "--split",
        "all",
    ]
    assert main([*command, "--json"]) == (1 if SATURATES else 0)
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "r.json").read_text())
    if SATURATES:
        assert "6 of 12 predictions differ on native, unoptimised; allowed: 0 (--max-flips 0.5%)" in err
    assert main([*command, "--overwrite", "--max-flips", "50%"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "native, unoptimised" in out
    assert main(command) == 2 and "exists already" in capsys.readouterr().err
    assert main(["verify", str(model)]) == 2 and "verify MODEL --data DATA" in capsys.readouterr().err
    assert main(["verify", "--prepare", "amr64"]) == 2 and "did you mean 'arm64'" in capsys.readouterr().err


# What is not there


def test_a_missing_emulator_is_one_line_that_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    model = full_range(tmp_path / "m.onnx")
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments in (["verify", str(model), "--data", "shapes", "--cpu", "nehalem"], ["verify", "--prepare", "arm64"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "apt-get install qemu-user-static" in err and arguments[-1] in err


def test_a_mistyped_cpu_gets_the_near_match():
    with pytest.raises(UnknownNameError, match="did you mean 'haswell'"):
        cpu_named("hasswel")
    with pytest.raises(UnknownNameError, match=r"allowed: native, haswell, sandybridge, nehalem, arm64$"):
        cpu_named("z80")
    assert cpu_named(" ARM64 ") is CPUS["arm64"]


@needs_qemu
def test_the_cpus_of_the_emulator_are_offered_too():
    assert cpu_named("icelake-SERVER").model == "Icelake-Server"
    emulator = find_emulator("x86_64", "this test")
    listed = subprocess.run([emulator.path, "-cpu", "help"], capture_output=True, text=True).stdout
    assert {"Haswell-noTSX", "SandyBridge", "Nehalem"} <= set(emulator.models)
    assert all(f"x86 {name} " in listed for name in emulator.models) and not {"max", "abm"} & set(emulator.models)
    with pytest.raises(UnknownNameError, match="did you mean 'cascadelake-server'"):
        cpu_named("cascade-lake-server")


def test_what_an_emulator_leaves_out_is_read_from_its_warnings():
    warning = "qemu-x86_64-static: warning: TCG doesn't support requested feature: CPUID."
    log = f"{warning}01H:ECX.pcid [bit 17]\n{warning}07H:EBX.avx512f [bit 16]\n{warning}07H:ECX.avx512vnni [bit 11]\n"
    assert unsupported_features(log + log) == ("avx512f", "avx512vnni")


def test_an_arm64_root_is_complete_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EmulatorError, match="deploykit verify --prepare arm64"):
        find_arm64_root()
    with pytest.raises(EmulatorError, match="holds no ARM64 root"):
        find_arm64_root(tmp_path)
    folder = tmp_path / "cache" / f"arm64-onnxruntime-{ONNXRUNTIME}"
    (folder / "root/usr/bin").mkdir(parents=True)
    (folder / "site/onnxruntime").mkdir(parents=True)
    (folder / "root/usr/bin/python3.11").touch()
    with pytest.raises(EmulatorError, match="there is no ARM64 root"):
        find_arm64_root()  # without its mark it may be cut short
    assert find_arm64_root(folder).python == (folder / "root/usr/bin/python3.11").resolve()  # named, it is the user's


@posix
def test_a_root_that_cannot_be_built_leaves_nothing(tmp_path, monkeypatch):
    emulator = Emulator("/none", "aarch64", "7.2", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match="on Debian or Ubuntu only, here is no apt-get"):
        prepare_arm64_root(emulator, tmp_path / "a/root")
    for tool in ("apt-get", "dpkg-deb"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
        (tmp_path / tool).chmod(0o755)
    with pytest.raises(EmulatorError, match=r"apt-get: E: no network; or give a folder .* --arm64-root"):
        prepare_arm64_root(emulator, tmp_path / "b/root")
    assert list((tmp_path / "b").iterdir()) == []
    (tmp_path / "c/root").mkdir(parents=True)
    (tmp_path / "c/root/thesis.tex").touch()
    with pytest.raises(OutputError, match="is no complete ARM64 root"):
        prepare_arm64_root(emulator, tmp_path / "c/root")
    assert (tmp_path / "c/root/thesis.tex").exists()


# The process, natively


@pytest.mark.skipif(sys.platform != "linux", reason="runs under emulators, which are Linux's")
def test_the_cpu_itself_says_what_the_kernel_says():
    assert tuple(emulated_worker.cpu_features()) == environment.cpu_features()


@posix
@pytest.mark.parametrize("batch", ["N", 4])
def test_the_process_answers_as_a_session_here(tmp_path, batch):
    model = matmul(tmp_path / "ein Modell.onnx", 16, 5, batch=batch)
    inputs = np.random.default_rng(1).standard_normal((11, 16), dtype=np.float32)
    answer = run_on(here(), Job(model, inputs, 4, batch == 4, 1), timeout_s=60)
    session = create_session(model, threads=1)
    rows = np.concatenate([session.run_rows(inputs[start : start + 4]) for start in range(0, 11, 4)])
    assert answer.logits.shape == (11, 5) and np.array_equal(answer.logits, rows)
    assert answer.cpu_features == environment.cpu_features()
    assert (answer.machine, answer.python) == (environment.describe()["machine"], environment.describe()["python"])


@posix
def test_a_process_that_fails_says_why_in_one_line(tmp_path):
    model = onnx.load(matmul(tmp_path / "m.onnx", 4, 2))
    model.ir_version = 99
    onnx.save(model, tmp_path / "m.onnx")
    job = Job(tmp_path / "m.onnx", np.zeros((1, 4), np.float32), 8, False, 1)
    with pytest.raises(
        NotComparableError, match=r"failed with exit code 1: .*Unsupported model IR version: 99"
    ) as told:
        run_on(here(), job, timeout_s=60)
    assert "\n" not in str(told.value)
    killed = here(timeout_command=("/bin/sh", "-c", "echo over >&2; kill -ILL $$"))
    with pytest.raises(NotComparableError, match="arm64 was killed by SIGILL: over"):
        run_on(killed, job, timeout_s=60)


@posix
def test_a_process_that_takes_too_long_is_ended_with_its_children(tmp_path):
    job = Job(endless_loop(tmp_path / "m.onnx"), np.zeros((1,), np.float32), 1, True, 1)
    family = here(timeout_command=("/bin/sh", "-c", "sleep 600 & sleep 600 & wait"))
    with pytest.raises(NotComparableError, match=r"on arm64 was ended after 0.3 s with 0 of 1 samples done"):
        run_on(family, job, timeout_s=0.3)
    # The fixture finds no process, also none of the shell's.
    assert not [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "600"]]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_parent_ends_the_process(tmp_path, number):
    program = f"""
import numpy as np, sys
from pathlib import Path
from deploykit.emulation import Job, Machine, run_on
from deploykit.qemu import CPUS
machine = Machine(CPUS["arm64"], (sys.executable,), {here().paths!r}, None, False)
job = Job(Path({str(endless_loop(tmp_path / "m.onnx"))!r}), np.zeros((1,), np.float32), 1, True, 1)
run_on(machine, job, timeout_s=100, progress=lambda *_: print("on", flush=True))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None and parent.stdout.readline() == "on\n"
    below = psutil.Process(parent.pid).children(recursive=True)
    assert len(below) == 1
    parent.send_signal(number)
    parent.stdout.close()
    parent.wait(20)
    gone, alive = psutil.wait_procs(below, timeout=20)
    assert gone and not alive
    leftover = Path(os.environ["TMPDIR"])
    if number == signal.SIGKILL:  # nobody was there to clean up
        (folder,) = leftover.glob("deploykit-*")
        shutil.rmtree(folder)
    assert list(leftover.glob("deploykit-*")) == []


# Under emulators


@needs_qemu
@needs_x86
def test_a_run_that_does_not_finish_is_in_the_record_and_exit_code_3(tmp_path, capsys):
    model, given = full_range(tmp_path / "m.onnx"), pictures()
    options = VerifyOptions(cpus=("haswell",), timeout_s=0.01, max_flips="100%")
    record = verify_onnx(model, given, options=options)
    assert record.verdict == "incomplete"
    assert record.runs[1].flips is None and "haswell was ended after 0.01 s" in str(record.runs[1].error)
    assert read_record(write_json(tmp_path / "r.json", record.to_document())) == record
    given = ["--cpu", "haswell", "--timeout", "0.01", "--max-flips", "100%", "--samples", "2", "--preprocess", "unit"]
    assert main(["verify", str(model), "--data", "shapes", *given]) == 3
    out, err = capsys.readouterr()
    assert "not finished" in out and err.count("error:") == 1 and "the run on haswell" in err


@needs_qemu
@needs_x86
@pytest.mark.slow
def test_haswell_saturates_and_older_ones_do_not(tmp_path):
    model, given = full_range(tmp_path / "m.onnx"), pictures()
    record = verify_onnx(model, given, options=VerifyOptions(cpus=("haswell", "sandybridge", "nehalem")))
    runs = {run.cpu: run for run in record.runs}
    images = np.asarray(given.take(64).pictures(range(12)))
    native = wanted(images, saturating=SATURATES)
    for name, saturating in (("haswell", True), ("sandybridge", False), ("nehalem", False)):
        expected = wanted(images, saturating=saturating)
        assert runs[name].flips == (expected.argmax(1) != native.argmax(1)).sum(), name
        assert runs[name].max_abs == pytest.approx(np.abs(expected - native).max(), abs=1e-4), name
        assert runs[name].onnxruntime == record.onnxruntime and "qemu-x86_64" in str(runs[name].emulator)
    assert runs["haswell"].cpu_features == ("sse4_2", "avx", "avx2", "fma")
    assert runs["sandybridge"].cpu_features == ("sse4_2", "avx")
    assert runs["nehalem"].cpu_features == ("sse4_2",)
    assert record.verdict == "differs"


@needs_qemu
@needs_x86
@pytest.mark.slow
def test_what_the_emulator_cannot_do_is_said(tmp_path):
    record = verify_onnx(
        full_range(tmp_path / "m.onnx"), pictures(), options=VerifyOptions(cpus=("icelake-server", "penryn"))
    )
    assert "avx512vnni" in record.warnings[0] and "the kernels for it did not run" in record.warnings[0]
    assert "NumPy was built with baseline" in str(record.runs[2].error)
    assert record.runs[1].error is None


@pytest.fixture(scope="module")
def arm64_root(tmp_path_factory) -> Arm64Root:
    """The one that was prepared, or one of this session's own."""
    try:
        return find_arm64_root()
    except EmulatorError:
        folder = tmp_path_factory.mktemp("arm64") / "root"
    try:
        return prepare_arm64_root(find_emulator("aarch64", "this test"), folder)
    except EmulatorError as problem:
        pytest.skip(str(problem))


@needs_qemu
@needs_x86
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_arm64_does_not_saturate_and_says_its_version(tmp_path, arm64_root):
    model, given = full_range(tmp_path / "m.onnx"), pictures()
    options = VerifyOptions(cpus=("arm64", "cortex-a53"), arm64_root=arm64_root.folder)
    record = verify_onnx(model, given, options=options)
    fast, plain = record.runs[1:]
    assert {"asimd", "asimddp", "i8mm"} <= set(fast.cpu_features) and plain.cpu_features == ("asimd",)
    for run in (fast, plain):
        assert (run.machine, run.onnxruntime) == ("aarch64", ONNXRUNTIME)
        assert run.flips == (6 if SATURATES else 0)
    assert f"arm64 ran ONNX Runtime {ONNXRUNTIME}" in record.warnings[0]
    complete = json.loads((arm64_root.folder / "complete.json").read_text())
    assert all(len(digest) == 64 for digest in complete["parts"].values())
    assert any(name.startswith("libc6_") for name in complete["parts"])
    assert prepare_arm64_root(find_emulator("aarch64", "this test"), arm64_root.folder) == arm64_root  # it is there


@needs_qemu
@needs_x86
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_int8_recipe_predicts_the_same_everywhere(trained, arm64_root):
    """The promise of the recipe, on CPUs that take the product of u8 × s8 in three different ways."""
    options = VerifyOptions(cpus=("haswell", "nehalem", "arm64"), samples=200, arm64_root=arm64_root.folder)
    record = verify_onnx(trained.int8, data.load("shapes", "test"), options=options)
    assert record.verdict == "same"
    assert [run.flips for run in record.runs] == [0, 0, 0, 0]
    assert len(machines_of(("haswell", "haswell"))) == 1
