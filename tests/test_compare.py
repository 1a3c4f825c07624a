"""Paired comparison: worked by hand, which tasks are the same, refusals, and two whole runs."""

import csv
import json
import os
import runpy
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from test_command_line import ROOT, command

import metadraw
from metadraw import InputError
from metadraw.command.cli import one_line_errors
from metadraw.objectives.classification import Classification
from metadraw.results.compare import compare
from metadraw.results.report import report
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

ONE, OTHER = [0.2, 0.4, 0.9], [0.4, 0.5, 1.0]

NAMES = Classification.names()


@pytest.fixture
def make_run(tmp_path):
    """Write a run folder: per-task accuracies, overrides, and any other test or data key."""

    def make(name, acc, typed=None, test=None, data=None, drawings=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        found = {
            "test": {
                "split": "test",
                "query_statistics": "query",
                "tasks": len(acc),
                **{metric: fmean(acc) for metric in NAMES},
                **(test or {}),
            },
            "data": {"source": "npm", "sha256": "0123456789abcdef", **(drawings or {})},
            "config": {
                "data": {
                    "_target_": "some.Data",
                    "ways": 5,
                    "shots": 1,
                    "queries": 1,
                    "seed": 42,
                    "eval_seed": 0,
                    "split_seed": 123,
                    "new_classes": "none",
                    "shift": 0,
                    "mirror": False,
                    **(data or {}),
                }
            },
        }
        (folder / "results.json").write_text(json.dumps(found))
        lines = [",".join(["number", *NAMES])]
        lines += [",".join([str(i), *[repr(a)] * len(NAMES)]) for i, a in enumerate(acc)]
        (folder / "tasks.csv").write_text("\n".join(lines) + "\n")
        if typed is not None:
            (folder / ".hydra").mkdir()
            (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(typed))
        return folder

    return make


def cells(text):
    """The rows of a printed table, without its header and rule."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def test_three_tasks_by_hand(make_run):
    """Accuracies 0.2, 0.4, 0.9 have mean 0.5 and standard deviation sqrt(0.26 / 2) = 0.360555, so
    the half-width is 1.96 * 0.360555 / sqrt(3) = 0.408004. For 0.4, 0.5, 1.0: mean 0.633333,
    deviations -7, -4 and 11 thirtieths, sqrt(186 / 900 / 2) = 0.321455, half-width 0.363764.
    The differences 0.2, 0.1, 0.1 have mean 0.133333 and standard deviation
    sqrt((4 + 1 + 1) / 900 / 2) = 0.057735, half-width 0.065333: it excludes zero, though the two
    intervals overlap widely. For 0.5, 0.1, 0.9 (mean 0.5, sd 0.4, half-width 0.452643) the
    differences 0.3, -0.3, 0 have mean 0 and standard deviation 0.3, half-width 0.339482.
    """
    folders = [make_run("a", ONE), make_run("b", OTHER), make_run("c", [0.5, 0.1, 0.9])]
    text = compare(folders)
    assert cells(text) == [
        ["`a`", "50.00 ± 40.80", "reference"],
        ["`b`", "63.33 ± 36.38", "**+13.33 ± 6.53**"],
        ["`c`", "50.00 ± 45.26", "+0.00 ± 33.95"],
    ]
    assert "acc (%)" in text
    for said in ("3 meta-test tasks", "5-way 1-shot", "npm, sha256 0123456789ab.", "bold"):
        assert said in text


def test_order_is_as_given_and_any_run_may_be_the_reference(make_run):
    a, b, c = make_run("a", ONE), make_run("b", OTHER), make_run("c", ONE)
    found = cells(compare([b, a], reference=f"{a}/"))
    assert [row[0] for row in found] == ["`b`", "`a`"]
    assert [row[2] for row in found] == ["**+13.33 ± 6.53**", "reference"]
    found = cells(compare([b, a], reference=c))
    assert [row[2] for row in found] == ["reference", "**+13.33 ± 6.53**", "+0.00 ± 0.00"]
    assert cells(compare([b, a]))[1][2] == "**-13.33 ± 6.53**"


def test_the_output_says_from_which_run_differences_are(make_run):
    a, b = make_run("a", ONE), make_run("b", OTHER)
    assert "Differences are from `b`, the first run; --reference RUN chooses" in compare([b, a])
    assert "the first run" not in compare([b, a], reference=a)


def test_a_sweep_and_its_report(tmp_path, make_run):
    """``compare.py SWEEP`` follows the command, ``SWEEP/*/`` the names; both omit the report.

    `sgd` comes first in the command, and one run has not finished.
    """
    sweep = tmp_path / "sweep"
    for time, (name, acc) in enumerate((("sgd", ONE), ("adam", OTHER), ("other", None))):
        typed = [f"optimizer={name}"]
        run = make_run(f"sweep/optimizer-{name}", acc or ONE, typed, test={"acc_ci95": 0.1})
        (run / "config.yaml").write_text("trainer:\n  max_epochs: 50\n")
        os.utime(run / "config.yaml", (time, time))
        if acc is None:
            (run / "results.json").unlink()
    found = report(sweep, sweep / "report")
    assert "2 of 3 runs are finished" in found

    text = compare([sweep])
    assert [row[0] for row in cells(text)] == ["`optimizer=sgd`", "`optimizer=adam`"]
    assert "Left out, no finished run: optimizer=other (0 of 50 epochs)." in text
    by_name = sorted(path for path in sweep.iterdir() if not path.name.endswith("other"))
    text = compare(by_name)
    assert [row[0] for row in cells(text)] == ["`optimizer=adam`", "`optimizer=sgd`"]
    assert f"Left out, no finished run: {sweep / 'report'}." in text
    with pytest.raises(InputError, match=r"runs to compare: 1 \(.*report: no finished run\)"):
        compare([by_name[0], sweep / "report"])


def test_losses_are_no_percentages(make_run):
    text = compare([make_run("a", ONE), make_run("b", OTHER)], metric="loss_before")
    assert cells(text)[1][1:] == ["0.6333 ± 0.3638", "**+0.1333 ± 0.0653**"]
    assert "%)" not in text


def test_labels_are_what_was_typed_for_some(make_run):
    shared = ["trainer=cpu", "data.shots=1"]
    runs = [
        make_run("0", ONE, shared),
        make_run("1", ONE, ["algorithm=fomaml", *shared]),
        make_run("2", ONE, ["algorithm=anil", "+data.names=a|b", *shared]),
        make_run("3", ONE, ["algorithm=fomaml", *shared]),
    ]
    assert [row[0] for row in cells(compare(runs))] == [
        "`0`",
        "`algorithm=fomaml (1)`",
        r"`algorithm=anil +data.names=a\|b`",
        "`algorithm=fomaml (3)`",
    ]


def test_folders_of_one_name_are_told_apart(make_run):
    a, b = make_run("one/0", ONE), make_run("two/0", ONE)
    assert [row[0] for row in cells(compare([a, b]))] == [f"`{a}`", f"`{b}`"]


def test_other_query_statistics_are_a_column_and_a_note(make_run):
    a = make_run("a", ONE)
    assert "query statistics: query;" in compare([a, make_run("b", ONE)])
    text = compare([a, make_run("c", ONE, test={"query_statistics": "support"})])
    assert [row[3] for row in cells(text)] == ["query", "support"]
    assert "transductive" in text


def test_fewer_tasks_in_one_run_leave_those_that_all_have(make_run):
    text = compare([make_run("a", [*ONE, 0.0]), make_run("b", OTHER)])
    assert [row[1:] for row in cells(text)] == [
        ["50.00 ± 40.80", "reference"],
        ["63.33 ± 36.38", "**+13.33 ± 6.53**"],
    ]
    assert "Only the 3 tasks that all runs have are compared; the runs tested 3, 4." in text


@pytest.mark.parametrize(
    ("other", "says", "remedy"),
    [
        ({"test": {"split": "val"}}, "split=test in {a} and val in {b}", "eval.py"),
        ({"data": {"_target_": "my.Data"}}, "data._target_=some.Data in {a} and my.Data", "train"),
        ({"data": {"split_seed": 7}}, "data.split_seed=123 in {a} and 7 in {b}", "train both"),
        ({"data": {"ways": 10}}, "data.ways=5 in {a} and 10 in {b}", "eval.py"),
        ({"data": {"shots": 5}}, "data.shots=1 in {a} and 5 in {b}", "eval.py"),
        ({"data": {"queries": 5}}, "data.queries=1 in {a} and 5 in {b}", "eval.py"),
        (
            {"data": {"within_groups": True}},
            "data.within_groups=False in {a} and True in {b}",
            "eval",
        ),
        ({"data": {"eval_seed": 1}}, "data.eval_seed=0 in {a} and 1 in {b}", "eval.py"),
        ({"drawings": {"sha256": "ff" * 32}}, "sha256 ffffffffffff in {b}", "eval.py"),
    ],
)
def test_other_tasks_are_refused(make_run, other, says, remedy):
    a, b = make_run("a", ONE), make_run("b", ONE, **other)
    with pytest.raises(InputError) as refused:
        compare([a, b])
    line = str(refused.value)
    assert line.startswith("not the same tasks: ")
    assert says.format(a=a, b=b) in line
    assert remedy in line


def test_meta_training_tasks_depend_on_the_seed_and_the_augmentation(make_run):
    other = {"seed": 7, "mirror": True, "shift": 2}
    assert compare([make_run("a", ONE), make_run("b", ONE, data=other)])
    seen = {"test": {"split": "train"}}
    with pytest.raises(InputError, match=r"data\.seed=42 in .*c and 7 in .*d"):
        compare([make_run("c", ONE, **seen), make_run("d", ONE, data=other, **seen)])


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rotation", 15, "data.rotation=0.0 in .* and 15 in"),
        ("zoom", 0.1, "data.zoom=0.0 in .* and 0.1 in"),
        ("shear", 5, "data.shear=0.0 in .* and 5 in"),
        ("train_samples_per_class", 20, "data.train_samples_per_class=None in .* and 20 in"),
        ("train_ways", 20, "data.ways=5 in .* and 20 in"),
        ("train_shots", [1, 5], r"data.shots=1 in .* and \[1, 5\] in"),
        ("train_queries", 3, "data.queries=1 in .* and 3 in"),
    ],
)
def test_settings_of_meta_training_alone_are_of_its_tasks_alone(make_run, key, value, says):
    other = {"data": {key: value}}
    assert compare([make_run("a", ONE), make_run("b", ONE, **other)])
    seen = {"test": {"split": "train"}}
    with pytest.raises(InputError, match=says):
        compare([make_run("c", ONE, **seen), make_run("d", ONE, **other, **seen)])


def test_drawings_without_a_checksum_are_known_by_what_is_told(make_run):
    a, b, c = (
        make_run(name, ONE, drawings={"source": source, "sha256": None})
        for name, source in (("a", "x.npy"), ("b", "x.npy"), ("c", "y.npy"))
    )
    assert compare([a, b])
    with pytest.raises(InputError, match=r"x\.npy.*y\.npy"):
        compare([a, c])


def broken(name, content):
    """A change to a run folder: one of its files with other content, or gone."""

    def change(folder):
        (folder / name).unlink() if content is None else (folder / name).write_text(content)

    return change


HEAD = ",".join(["number", *NAMES])
BROKEN = {
    "no results": (broken("results.json", None), "/b has no results.json", "eval.py"),
    "no tasks": (broken("tasks.csv", None), "/b has no tasks.csv", "/b/checkpoints/best.ckpt"),
    "results cut off": (broken("results.json", '{"test": {'), "/b/results.json: damaged"),
    "other results": (broken("results.json", "[1]"), "/b/results.json: damaged"),
    "key missing": (broken("results.json", '{"test": {}}'), "/b/results.json: damaged"),
    "tasks empty": (broken("tasks.csv", ""), "/b: tasks.csv does not match the test"),
    "other columns": (broken("tasks.csv", "number,x\n0,1\n"), "/b/tasks.csv: damaged"),
    "no number": (broken("tasks.csv", f"{HEAD}\n0,x,x,1,1,1,1\n"), "/b/tasks.csv: damaged"),
    "row cut off": (broken("tasks.csv", f"{HEAD}\n0,0.2\n"), "/b/tasks.csv: damaged"),
    "tasks cut off": (
        broken("tasks.csv", f"{HEAD}\n0{',0.2' * 6}\n1{',0.4' * 6}\n"),
        "/b: tasks.csv does not match the test in results.json",
    ),
    "tasks of another test": (
        broken("tasks.csv", f"{HEAD}\n0{',0.2' * 6}\n1{',0.4' * 6}\n2{',0.8' * 6}\n"),
        "/b: tasks.csv does not match the test in results.json",
    ),
    "not finite": (broken("tasks.csv", f"{HEAD}\n0{',nan' * 6}\n"), "acc of task 0 is nan"),
    "overrides": (broken(".hydra/overrides.yaml", "[a"), "/b/.hydra/overrides.yaml: damaged"),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_run_that_cannot_be_read_is_told_in_one_line(make_run, wrong):
    a, b = make_run("a", ONE), make_run("b", ONE, typed=["x=1"])
    change, *says = BROKEN[wrong]
    change(b)
    for given, reference in (([a, b], None), ([a], b)):
        with pytest.raises(SystemExit) as stopped, one_line_errors():
            compare(given, reference)
        line = str(stopped.value)
        assert "\n" not in line
        for part in ["error: ", *says]:
            assert part in line


def test_wrong_calls(make_run, tmp_path):
    a, b = make_run("a", ONE), make_run("b", ONE)
    with pytest.raises(InputError, match="runs to compare: 0: name at least two"):
        compare([])
    with pytest.raises(InputError, match="runs to compare: 1: name at least two"):
        compare([a], reference=a)
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        compare([a, tmp_path / "nowhere"])
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        compare([a, b], reference=tmp_path / "nowhere")
    with pytest.raises(InputError, match="metric=accuracy: must be one of loss, acc"):
        compare([a, b], metric="accuracy")


def test_too_few_tasks_in_common(make_run):
    """A single task has no interval; no task at all is only possible after an edit by hand."""
    a, one = make_run("a", ONE), make_run("one", [0.2])
    with pytest.raises(InputError, match="tasks that all runs have: 1: an interval needs"):
        compare([a, one])
    tasks = one / "tasks.csv"
    tasks.write_text(tasks.read_text().replace("\n0,", "\n9,"))
    with pytest.raises(InputError, match="tasks that all runs have: 0: an interval needs"):
        compare([a, one])


def test_two_whole_runs_and_one_tested_again(tiny, tmp_path):
    """Tested in their runs and again on fewer tasks: the files exist and agree."""
    folders = []
    for algorithm in ("maml", "fomaml"):
        overrides = [f"algorithm={algorithm}", f"paths.output_dir={tmp_path / algorithm}"]
        found = train(metadraw.compose(*tiny, "trainer.max_epochs=1", *overrides))
        folder = Path(tmp_path / algorithm)
        with open(folder / "tasks.csv") as file:
            rows = list(csv.DictReader(file))
        assert [row["number"] for row in rows] == [str(number) for number in range(8)]
        for name in NAMES:
            mean = fmean(float(row[name]) for row in rows)
            assert mean == pytest.approx(found["test"][name], abs=1e-6)
        folders.append(folder)
    maml, fomaml = cells(compare(folders))
    assert (maml[0], maml[2]) == ("`maml`", "reference")
    assert fomaml[0] == "`fomaml`"

    again = metadraw.compose(
        f"ckpt_path={folders[0]}/checkpoints/best.ckpt",
        "trainer=cpu",
        "data.test_batches=1",
        f"paths.output_dir={tmp_path / 'again'}",
        config="eval",
    )
    evaluate(again)
    # The same tasks give the same results, to the last printed digit.
    text = compare([folders[0], tmp_path / "again"], metric="loss")
    assert cells(text)[1][2] == "+0.0000 ± 0.0000"
    assert "Only the 4 tasks that all runs have" in text


def test_the_program(make_run, monkeypatch, capsys):
    a, b = make_run("a", ONE), make_run("b", OTHER)

    def printed(*arguments):
        monkeypatch.setattr("sys.argv", ["compare.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "compare.py"), run_name="__main__")
        return capsys.readouterr().out

    given = (b, "--metric", "loss", "--reference", a)
    assert printed(*given) == compare([b], a, metric="loss") + "\n"
    with pytest.raises(SystemExit, match="0"):
        printed("--help")
    shown = capsys.readouterr().out
    for part in ("python compare.py logs/train/multiruns/SWEEP", "--reference", "acc_before"):
        assert part in shown


def test_nothing_but_one_line_is_printed_of_a_wrong_call(make_run):
    done = command(make_run("a", ONE), program="compare.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: runs to compare: 1: name at least two run folders\n"
