"""Studies: what is tried, by one or several sweeps, any of which may be killed, and which trials were the best."""

from __future__ import annotations

import subprocess
from pathlib import Path

import commands
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lq_plugin.apps.optuna_space import parse
from lq_plugin.apps.optuna_study import opened
from lq_plugin.errors import ConfigError

# Returns what is to be maximized, what is to be minimized, and a constraint. The job that another process waits for,
# and the one that a process is killed in, are told by files.
APP = """
import os, signal, time
from pathlib import Path
import hydra
from hydra.core.config_store import ConfigStore

other = os.fork() if Path("together").exists() else 0

def app(config):
    with open("jobs.txt", "a") as log:
        print(config.x, config.y, file=log)
    if Path(f"kill {config.x} {config.y}").exists():
        Path(f"kill {config.x} {config.y}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if Path("together").exists():
        Path(f"here {os.getpid()}").touch()
        while len(list(Path().glob("here *"))) < 2:
            time.sleep(0.01)
    if config.y < 0:
        raise hydra.errors.HydraException("y: negative.")
    return config.x, config.y, config.x - 2

sweeper = {"direction": ["maximize", "minimize"]}
quiet = {"root": {"level": "WARNING"}}
ConfigStore.instance().store(name="stub", node={
    "defaults": ["_self_", {"override hydra/sweeper": "lq_optuna"}],
    "x": 0, "y": 1, "objectives": ["gain", "cost", "excess"],
    "hydra": {"sweeper": sweeper, "hydra_logging": quiet, "job_logging": quiet},
})
hydra.main(version_base="1.3", config_path=None, config_name="stub")(app)()
if other:
    os.waitpid(other, 0)
"""
TPE = ("hydra.sweeper.sampler={_target_: optuna.samplers.TPESampler, seed: 1}", "hydra.sweeper.n_trials=3")


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(APP)
    return commands.run("app.py", "-m", *arguments, cwd=folder, timeout=60)


def jobs(folder: Path) -> list[str]:
    return (folder / "jobs.txt").read_text().splitlines()


def finished(folder: Path, state: TrialState = TrialState.COMPLETE) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / "studies.journal")))
    (study,) = storage.get_all_studies()
    return Study(study.study_name, storage).get_trials(states=(state,))


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path) -> None:
    options = ("x=1,2,3", "y=interval(0, 1)", *TPE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sweep(whole, *options).returncode == 0
    expected = jobs(whole)
    killed.mkdir()
    (killed / f"kill {expected[1]}").touch()
    assert sweep(killed, *options).returncode == -9
    with (killed / "studies.journal").open("a") as journal:
        journal.write('{"op_code":')  # as a full disk leaves it
    done = sweep(killed, *options)
    assert done.returncode == 0, done.stderr
    assert jobs(killed) == [*expected[:2], *expected[1:]]
    assert len(finished(killed)) == len(finished(whole)) == len(expected)


def test_the_next_sweep_tries_again_what_failed_and_what_was_killed_alone(tmp_path: Path) -> None:
    (tmp_path / "kill 1 2").touch()
    assert sweep(tmp_path, "x=1", "y=-1,1,2").returncode == -9
    done = sweep(tmp_path, "x=1", "y=-1,1,2")
    assert done.returncode == 0, done.stderr
    assert "lq_plugin: trial 3 failed: y: negative." in done.stdout
    assert jobs(tmp_path) == ["1 -1", "1 1", "1 2", "1 -1", "1 2"]
    assert sorted(trial.params["y"] for trial in finished(tmp_path)) == ["1", "2"]


def test_two_sweeps_share_a_study_and_what_breaks_a_constraint_is_not_among_the_best(tmp_path: Path) -> None:
    (tmp_path / "together").touch()  # each has a job that waits for one of the other's
    done = sweep(tmp_path, "x=1,2,3", "y=range(0.5, 1.2, 0.6)", "hydra.sweeper.n_trials=5", "hydra.sweep.dir=same")
    assert done.returncode == 0, done.stderr
    assert len({trial.user_attrs["worker"] for trial in finished(tmp_path)}) == 2
    assert sorted(jobs(tmp_path)) == ["1 0.5", "1 1.1", "2 0.5", "2 1.1", "3 0.5"]
    assert [trial.constraints["excess"] for trial in finished(tmp_path)] == [-1, -1, 0, 0, 1]
    best = [line for line in done.stdout.splitlines() if "  trial" in line]
    assert best == ["lq_plugin:   trial 2: gain 2, cost 0.5, excess 0 with x=2 y=0.5"] * 2
    assert sorted(folder.name for folder in (tmp_path / "same").iterdir()) == ["0", "1", "2", "3", "4"]
    assert list(tmp_path.glob("*.worker")) == []


def test_known_values_are_told_and_not_measured_again(tmp_path: Path) -> None:
    done = sweep(tmp_path, "x=1,2", "hydra.sweeper.n_jobs=3", *TPE)
    assert done.returncode == 0, done.stderr
    assert sorted(jobs(tmp_path)) == ["1 1", "2 1"]
    assert len(finished(tmp_path)) == 3


def test_an_unknown_parameter_is_named_before_any_job_runs(tmp_path: Path) -> None:
    done = sweep(tmp_path, "x=1,2", "z=1,2")
    assert done.returncode == 1
    assert "Could not override 'z'" in done.stderr
    assert not (tmp_path / "jobs.txt").exists()


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("some.txt/journal", "/some.txt/journal' cannot be written to .*Give a file in another folder"),
        ("some.txt", "/some.txt' is no journal of Optuna, or damaged .*Give another file"),
        ("sqlite:///a.db", "'sqlite:///a.db' is a URL. Studies are kept in a file"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(
    storage: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.txt").write_text("Dear diary")
    with pytest.raises(ConfigError, match=rf"^hydra\.sweeper\.storage: .*{said}"), opened(storage, "mine", [], ""):
        pass
    assert Path("some.txt").read_text() == "Dear diary"


def test_a_study_of_something_else_is_not_continued(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    for _ in range(2):
        with opened(journal, "mine", ["maximize"], "this"):
            pass
    with pytest.raises(ConfigError, match=r"study_name: 'mine' in .* is a study of other options, code or values"):
        opened(journal, "mine", ["maximize"], "that").__enter__()


@pytest.mark.parametrize(
    ("searched", "expected"),
    [
        ("a,b,[c]", CategoricalDistribution(("a", "b", "[c]"))),
        ("range(1, 6, 2)", IntDistribution(1, 5, step=2)),
        ("range(1.0, 0, -0.3)", FloatDistribution(0.1, 1.0, step=0.3)),
        ("int(interval(1, 9))", IntDistribution(1, 9)),
        ("tag(log, interval(1e-4, 1))", FloatDistribution(1e-4, 1.0, log=True)),
        ("shuffle(range(1, 4))", IntDistribution(1, 3)),
    ],
)
def test_hydras_overrides_are_optunas_distributions(searched: str, expected: object) -> None:
    space = parse({"x": "5", "z": "1,2"}, [f"x={searched}", "z=1", "~y"])
    assert dict(space.distributions) == {"x": expected}
    assert space.job({"x": "0.5"}) == ("z=1", "~y", "x=0.5")


@pytest.mark.parametrize("searched", ["interval(5, 1)", "tag(log, interval(0, 1))", "range(3, 1)"])
def test_an_interval_that_is_none_is_refused(searched: str) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params: x="):
        parse({}, [f"x={searched}"])


def test_an_interval_is_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"sampler: none, .* but x may be any number of an interval\. Give a sampler"):
        parse({}, ["x=interval(0, 1)"]).grid()
