"""The import direction of the packages, and no cycles: import-linter with `[tool.importlinter]` of pyproject.toml."""

from importlinter import cli

from support.distributions import ROOT


def test_imports_run_downward_without_cycles_and_the_library_needs_no_lightning(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "_configure_logging", lambda verbose: None)  # it disables the loggers of everything else
    status = cli.lint_imports(no_cache=True)
    assert status == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out
