"""The folder that TensorBoard is shown, and the links to it."""

from pathlib import Path

from seqzoo.cli.commands.dashboard import link_runs, links


def test_runs_have_their_own_names(tmp_path: Path) -> None:
    runs, named = tmp_path / "runs", tmp_path / "named"
    for place in (
        "charlm/gru/a/tensorboard",
        "charlm/gru/a/tensorboard/inspect",
        "bench/b/tensorboard/lstm",
    ):
        (runs / place).mkdir(parents=True)
        (runs / place / "events.out.tfevents.1").write_text(place)
    (runs / "charlm/gru/a/tensorboard/inspect/00000").mkdir()
    (runs / "charlm/gru/a/tensorboard/inspect/00000/tensors.tsv").write_text("1")
    link_runs(runs, named)
    found = {str(p.parent.relative_to(named)) for p in named.rglob("events.*")}
    assert found == {"charlm/gru/a", "charlm/gru/a/inspect", "bench/b/lstm"}
    assert (named / "charlm/gru/a/inspect/00000/tensors.tsv").read_text() == "1"
    (runs / "charlm/rnn/c/tensorboard").mkdir(parents=True)  # begins while it is shown
    (runs / "charlm/rnn/c/tensorboard/events.out.tfevents.2").write_text("")
    link_runs(runs, named)
    assert (named / "charlm/rnn/c/events.out.tfevents.2").exists()
    link_runs(runs / "charlm/rnn/c", tmp_path / "one")
    assert (tmp_path / "one/c/events.out.tfevents.2").exists()


def test_the_first_link_shows_what_there_is(tmp_path: Path) -> None:
    assert next(iter(links("http://here", tmp_path))) == "curves"
    (tmp_path / "bench.json").write_text("{}")
    assert next(iter(links("http://here", tmp_path))) == "bench"
    (tmp_path / "compare/a").mkdir(parents=True)
    (tmp_path / "compare/a/compare.json").write_text("{}")
    assert next(iter(links("http://here", tmp_path))) == "bench"
    assert next(iter(links("http://here", tmp_path / "compare"))) == "comparison"
