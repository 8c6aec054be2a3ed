"""`vtcframe explore` as a command."""

import asyncio
import gc
import os
import re
import socket
import subprocess
import sys

import pytest

from vtcframe.errors import UsageError
from vtcframe.explore import command as explore
from vtcframe.explore.command import _bypass_proxies

pytest.importorskip("gradio", reason="the extra `explore` is not installed")


def test_importing_the_command_imports_neither_gradio_nor_torch():
    code = "import sys, vtcframe.explore.command; print({'gradio', 'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_without_gradio_the_error_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(explore, "find_spec", lambda name: None)
    for start in (lambda: explore.main([]), explore.page, explore.launch_options):
        with pytest.raises(UsageError, match=re.escape("pip install 'vtcframe[explore]'")):
            start()


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_an_invalid_port_is_reported(capsys, port):
    with pytest.raises(SystemExit) as exit_info:
        explore.main(["--port", port])
    assert exit_info.value.code == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vtcframe:tinny"], "nothing bundled is called 'vtcframe:tinny'"),
        (["--device", "banana"], "there is no device 'banana' here"),
        (["--attn", "fast"], "cannot be loaded as a checkpoint"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_is_reported(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        explore.main([*arguments, "--no-browser"])


def test_an_occupied_port_and_a_foreign_address_are_reported_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(explore, "page", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for arguments, address in (
            (["--port", port], f"127.0.0.1:{port}"),
            (["--host", "203.0.113.7"], "203.0.113.7"),
            (["--host", "2001:db8::7", "--port", "7860"], "2001:db8::7:7860"),
        ):
            with pytest.raises(UsageError, match=f"cannot serve at {address} .*: --host is an address of this machine"):
                explore.main([*arguments, "--no-browser"])


def test_hosts_that_the_environment_excludes_from_its_proxy_stay_excluded(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("no_proxy", "example.org")
    _bypass_proxies("127.0.0.1")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "example.org,127.0.0.1,localhost"


def test_the_page_can_be_rendered_inside_another_page():
    import gradio

    async def both():
        with gradio.Blocks(analytics_enabled=False) as outer:
            inner = explore.page()
            inner.render()
        return inner, outer

    inner, outer = asyncio.run(both())
    assert len(outer.fns) == 7
    assert not inner.analytics_enabled


def test_a_page_leaves_no_event_loop_open():
    def loops():
        return sum(issubclass(type(value), asyncio.AbstractEventLoop) for value in gc.get_objects())

    before = loops()
    assert explore.page().title == "vtcframe explore"
    assert loops() == before
