"""The dashboard of a W&B project as code: run it for yours, or edit the panels first.

pip install 'metadraw[dashboard]'
python notebooks/wandb_dashboard.py ENTITY/PROJECT

It saves a view called "metadraw" in the project, to which any number of runs and sweeps of
logger=wandb may have been logged, and prints its address. The metrics are those of classification.
"""

import sys

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

SETTINGS = ("data.ways", "data.shots", "data.train_samples_per_class", "algorithm_name")
RESULTS = ("best_val_acc", "test/acc", "test/acc_ci95")


def workspace(entity: str, project: str) -> ws.Workspace:
    """The view of a project, not saved yet."""
    settings = [wr.Config(name) for name in SETTINGS]
    best, test = wr.SummaryMetric("best_val_acc"), wr.SummaryMetric("test/acc")
    sections = [
        ws.Section(
            "Meta-validation",
            is_open=True,
            panels=[
                wr.LinePlot(title="accuracy", x="epoch", y=["val/acc"]),
                wr.LinePlot(title="loss", x="epoch", y=["val/loss"]),
                wr.LinePlot(title="accuracy by tasks seen", x="tasks_seen", y=["val/acc"]),
            ],
        ),
        ws.Section(
            "Overfitting",
            panels=[
                wr.LinePlot(title="accuracy", x="epoch", y=["train/acc", "val/acc"]),
                wr.LinePlot(title="loss", x="epoch", y=["train/loss", "val/loss"]),
            ],
        ),
        ws.Section(
            "Adaptation",
            panels=[
                wr.LinePlot(title="before and after", x="epoch", y=["val/acc_before", "val/acc"]),
                wr.LinePlot(title="loss", x="epoch", y=["val/loss_before", "val/loss"]),
            ],
        ),
        ws.Section(
            "Meta-test",
            is_open=True,
            panels=[
                wr.BarPlot(title="accuracy by shots", metrics=["test/acc"], groupby=settings[1]),
                wr.ScatterPlot(title="meta-validation, meta-test", x=best, y=test, z=settings[1]),
                wr.ParallelCoordinatesPlot(
                    title="settings to accuracy",
                    columns=[wr.ParallelCoordinatesPlotColumn(of) for of in [*settings, test]],
                ),
            ],
        ),
        ws.Section("Pictures", panels=[wr.MediaBrowser(media_keys=["episode", "curves"])]),
        ws.Section("Settings that differ", panels=[wr.RunComparer(diff_only="split")]),
    ]
    table = ws.RunsetSettings(
        order=[ws.Ordering(ws.Summary("best_val_acc"), ascending=False)],
        pinned_columns=[f"summary:{name}" for name in RESULTS],
    )
    return ws.Workspace(entity, project, "metadraw", sections=sections, runset_settings=table)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].count("/") != 1:
        sys.exit("usage: python notebooks/wandb_dashboard.py ENTITY/PROJECT")
    try:
        print(workspace(*sys.argv[1].split("/")).save().url)
    except (wandb.Error, ValueError) as error:
        sys.exit(f"W&B: {error}")
