"""`vtcframe explore`: serve a local page that shows the kept tokens and the answers of two methods for a picture."""

import argparse
import asyncio
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vtcframe.errors import UsageError

if TYPE_CHECKING:  # importing torch and gradio takes seconds; a misspelled option is reported earlier
    from gradio import Blocks

    from vtcframe.explore.explainer import Dtype

TINY = "vtcframe:tiny"


def main(arguments: list[str]) -> int:
    """Serve the page until it is interrupted, and return the exit status.

    Raises UsageError for options that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="vtcframe explore",
        description="Serve a local page that compares two methods and the unpruned model on your picture.",
    )
    parser.add_argument("--model", default=TINY, help="folder or name on the Hugging Face Hub (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the weights (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="device, for example cuda (default: %(default)s)")
    parser.add_argument("--attn", help="attention kernel, for example sdpa or eager")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve at; 0.0.0.0 accepts every network interface (default: %(default)s)",
    )
    parser.add_argument("--port", type=_port, help="port to serve at (default: the first free port from 7860 on)")
    parser.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")
    options = parser.parse_args(arguments)
    _check_extra()
    _check_address(options.host, options.port)
    app = page(options.model, options.dtype, options.device, options.attn)
    _bypass_proxies(options.host)
    app.launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=not options.no_browser,
        prevent_thread_lock=True,
        **launch_options(),
    )
    print(f"Serving {options.model} at {app.local_url} (press Ctrl+C to stop)", flush=True)
    app.block_thread()
    return 0


def page(path: str = TINY, dtype: "Dtype" = "float32", device: str = "cpu", attention: str | None = None) -> "Blocks":
    """Load the checkpoint `path` and return its page, which can be launched, mounted or rendered inside another page.

    Raises UsageError if gradio is not installed or the checkpoint cannot be loaded.
    """
    _check_extra()
    from vtcframe.explore.explainer import Explainer
    from vtcframe.explore.page import build_page
    from vtcframe.explore.session import Questioner

    questioner = Questioner(Explainer(path, dtype, device, attention))
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # without a running loop gradio opens event loops and never closes them
        return asyncio.run(_call(build_page, questioner))
    return build_page(questioner)


async def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def launch_options() -> dict[str, Any]:
    """Return options for gradio's `launch`: no external requests, no public link, no history in the browser."""
    _check_extra()
    from vtcframe.explore.page import LAUNCH

    return dict(LAUNCH)


def _check_extra() -> None:
    if find_spec("gradio") is None:
        raise UsageError("the page needs gradio: run pip install 'vtcframe[explore]'")


def _port(text: str) -> int:
    if not 1 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port: give 1 to 65535")
    return number


def _check_address(host: str, port: int | None) -> None:
    """Raise UsageError for an address that cannot be used, which gradio would retry for minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        address = host if port is None else f"{host}:{port}"
        raise UsageError(
            f"cannot serve at {address} ({error.strerror}): --host is an address of this machine; leave --port out for "
            "a free one"
        ) from error


def _bypass_proxies(host: str) -> None:
    """Exclude `host` from the proxies of the environment, because gradio sends a request to its own page."""
    excluded = [os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")), host, "localhost"]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, excluded))
