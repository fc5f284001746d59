import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchcbl
from torchcbl.lab.cli import main
from torchcbl.lab.parsers.base import a_folder

TINY = ["--seeds=1", "--epochs=1", "--jobs=2", "--set", "width=4", "--set", "batch_size=100"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "torchcbl", *words], capture_output=True, text=True, check=False)


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("torchcbl: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "out"
    finished = run("compare", *TINY, "--arms=standard,cbl", f"--out={out}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "standard" in finished.stdout.split("[2/2]")[1]
    assert finished.stdout.rstrip().endswith(f"report: {out / 'report.html'}")
    return out


@pytest.mark.parametrize("words", [["--help"], ["compare", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\nfrom torchcbl.lab.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'lightning', 'numpy', 'rich', 'scipy', 'sklearn', 'matplotlib', 'ray', 'submitit'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "torchcbl" in finished.stdout


def test_version_and_module_call() -> None:
    assert run("--version").stdout == f"torchcbl {torchcbl.__version__}\n"


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("compare", "sweep", "report", "sites", "audit", "stability", "measure", "robustness", "listen"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"examples:\n  torchcbl {command}" in capsys.readouterr().out


def test_compare_leaves_a_study(study: Path) -> None:
    assert {path.name for path in study.iterdir()} >= {"recipe.toml", "records", "runs", "report.html", "table.md"}


def test_compare_again_repeats_nothing(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *TINY, "--arms=standard,cbl", f"--out={study}"]) == 0
    output = capfd.readouterr().out
    assert "epoch" not in output.split("report:")[0].split("Test accuracy")[0]
    assert "report: " in output


def test_another_study_in_the_folder(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "steps is 2 there, 3 here" in failure(capsys, "compare", *TINY, "--set=steps=3", f"--out={study}")


def test_report_is_rebuilt(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "report.html").unlink()
    assert main(["report", str(study)]) == 0
    assert (study / "report.html").is_file()
    assert str(study / "report.html") in capsys.readouterr().out


def test_audit_of_a_loop_and_of_the_plain_network(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(study / "runs" / "cbl-seed0")]) == 0
    output = capsys.readouterr().out
    assert all(f"block{i}" in output for i in (1, 2, 3))
    assert main(["audit", str(study / "runs" / "standard-seed0")]) == 0
    assert "standard-seed0 is no `ContextLoop`: it has no loop to audit" in capsys.readouterr().out


def test_a_failed_run_gives_exit_code_1_and_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "cbl-seed0").mkdir(parents=True)
    (tmp_path / "runs" / "cbl-seed0" / "model").write_text("in the way")
    assert main(["compare", *TINY, "--arms=standard,cbl", f"--out={tmp_path}"]) == 1
    output, errors = capsys.readouterr()
    assert errors.startswith("torchcbl: error: cbl-seed0 failed: ")
    assert str(tmp_path / "runs" / "cbl-seed0" / "output.log") in errors
    assert errors.count("\n") == 1
    assert "report: " in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "demoo"], "unknown recipe 'demoo': did you mean 'demo'?"),
        (["compare", "--set", "epoch=3"], "unknown recipe key 'epoch': did you mean 'epochs'"),
        (["compare", "--set", "epochs"], "--set needs key=value, got 'epochs'"),
        (["compare", "--set", "epochs=few"], "'epochs' must be a whole number"),
        (["compare", "--arms", "cbl,gate"], "unknown arm 'gate'"),
        (["compare", "--seeds", "0"], "'seeds' must be >= 1"),
        (["compare", "--jobs", "0", "--out", "{}"], "jobs must be >= 1"),
        (["compare", "--engine", "rey"], "unknown engine 'rey': did you mean 'ray'?"),
        (
            ["compare", "--nodes", "2"],
            "--engine local is this machine alone, got --nodes 2: take --engine ray or slurm",
        ),
        (["compare", "--strategy", "fsdp"], "--strategy fsdp spreads one run over several: add --devices or --nodes"),
        (["compare", "--devices", "2", "--strategy", "dpp"], "strategy must be one of ddp, fsdp, got 'dpp'"),
        (["compare", "--slurm", "partition"], "--slurm needs key=value, got 'partition'"),
        (
            ["compare", "--slurm", "partition=gpu"],
            "options of Slurm (partition) need --engine slurm, got --engine local",
        ),
        (["compare", "cifar10", "--data", "{}/none", "--out", "{}"], "none"),
        (["compare", "--data", "image:{}"], "--data knows images:DIR, audio:DIR or a folder, got 'image:"),
        (["compare", "--data", "{}", "--out", "{}"], "is on digits, which come with scikit-learn: leave out --data"),
        (["compare", "--data", "images:"], "--data images:DIR needs the folder, got 'images:'"),
        (["compare", "--out", "/dev/null"], "could not write to the folder /dev/null: "),
        (["report", "{}/none"], "holds no study"),
        (["audit", "{}/none"], "is no run: give OUT/runs/<arm>-seed<k>"),
        (["audit", "{}/runs/cbl-seed0"], "recipe.toml is not there"),
        (["audit", "{}/runs/loop-free-seed3"], "loop-free is not trained: it is cbl read at step 0. Give "),
        (["sites", "Resnet"], "must be StandardCNN, package.module:callable"),
    ],
)
def test_a_users_error_is_one_line_without_traceback(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(capsys, *(word.format(tmp_path) for word in words))


def test_an_unfinished_run_cannot_be_audited(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = failure(capsys, "audit", str(study / "runs" / "cbl-seed7"))
    assert "holds no weights: run the same `torchcbl compare` until it is finished" in said


def test_a_run_whose_weights_are_gone_says_how_to_have_them_again(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(study, tmp_path / "out")
    shutil.rmtree(out / "runs" / "cbl-seed0" / "model")
    said = failure(capsys, "audit", str(out / "runs" / "cbl-seed0"))
    assert f"delete {out / 'records' / 'cbl-seed0.json'} and run the same `torchcbl compare` again" in said


def test_a_shape_is_numbers_and_commas(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("1,3,x", "-1,3", "0,3"):
        with pytest.raises(SystemExit, match="2"):
            main(["sites", "StandardCNN", f"--input={text}"])
        message = f"a shape is whole numbers >= 1 and commas, as in 1,3,32,32, got '{text}'"
        assert message in capsys.readouterr().err


def test_a_folder_may_begin_with_the_home_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert a_folder("~/x") == tmp_path / "x"
    assert a_folder("~no-such-user/x") == Path("~no-such-user/x")


def test_sites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "StandardCNN", "--input", "1,3,32,32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["block1", "Sequential", "2,800", "parameters", "h:", "(B,", "16,", "16,", "16)"]
    assert main(["sites", "StandardCNN"]) == 0
    assert "--input SHAPE" in capsys.readouterr().out


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    command = f"{sys.executable} -m torchcbl sites StandardCNN | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("block1")
    assert done.stderr == ""
