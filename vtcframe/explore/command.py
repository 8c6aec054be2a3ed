"""`vtcframe explore`: a page on this machine: what two methods keep of a picture, and what is answered then."""

import argparse
import asyncio
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vtcframe.errors import UsageError

if TYPE_CHECKING:  # torch and gradio take seconds: a typo is answered before
    from gradio import Blocks

    from vtcframe.explore.explain import Dtype

TINY = "vtcframe:tiny"


def main(arguments: list[str]) -> int:
    """Serve the page until it is interrupted, and return the exit status. UsageError for what cannot be used."""
    options = argparse.ArgumentParser(
        prog="vtcframe explore",
        description="A page on this machine: two methods side by side on your picture, and the untouched model.",
    )
    options.add_argument("--model", default=TINY, help="folder or name on the Hugging Face Hub; %(default)s")
    options.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights; %(default)s"
    )
    options.add_argument("--device", default="cpu", help="where to run, for example cuda; %(default)s")
    options.add_argument("--attn", help="attention kernel, for example sdpa or eager")
    options.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 is for all who reach it")
    options.add_argument("--port", type=_port, help="the first free one from 7860 on when not given")
    options.add_argument("--no-browser", action="store_true", help="only tell the address")
    given = options.parse_args(arguments)
    _check_extra()
    _check_address(given.host, given.port)
    served = page(given.model, given.dtype, given.device, given.attn)
    _bypass_proxies(given.host)
    served.launch(
        server_name=given.host,
        server_port=given.port,
        inbrowser=not given.no_browser,
        prevent_thread_lock=True,
        **launch_options(),
    )
    print(f"{given.model} can be asked at {served.local_url} (Ctrl+C ends it)", flush=True)
    served.block_thread()
    return 0


def page(path: str = TINY, dtype: "Dtype" = "float32", device: str = "cpu", attention: str | None = None) -> "Blocks":
    """Return the page about the checkpoint `path`, to be launched, mounted or rendered inside another one.

    UsageError where gradio is not installed, and for what cannot be loaded.
    """
    _check_extra()
    from vtcframe.explore.explain import Explainer
    from vtcframe.explore.page import layout
    from vtcframe.explore.session import Questioner

    questioner = Questioner(Explainer(path, dtype, device, attention))
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # gradio would open event loops of its own, and leave them open
        return asyncio.run(_awaitable(layout, questioner))
    return layout(questioner)


async def _awaitable(make: Callable[..., Any], *given: Any) -> Any:
    return make(*given)


def launch_options() -> dict[str, Any]:
    """Return options of gradio's launch by which nothing is fetched from elsewhere, shared, or kept in the browser."""
    _check_extra()
    from vtcframe.explore.page import LAUNCH

    return dict(LAUNCH)


def _check_extra() -> None:
    if find_spec("gradio") is None:
        raise UsageError("the page needs gradio: pip install 'vtcframe[explore]'")


def _port(text: str) -> int:
    if not 1 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is no port: give 1 to 65535")
    return number


def _check_address(host: str, port: int | None) -> None:
    """UsageError for what gradio would try for minutes, after the model was loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        where = host if port is None else f"{host}:{port}"
        raise UsageError(
            f"cannot serve at {where} ({error.strerror}): --host is an address of this machine; leave --port out for "
            "a free one"
        ) from error


def _bypass_proxies(host: str) -> None:
    """Let gradio, which asks its own page whether it is up, ask it directly and no proxy of the environment."""
    spared = [os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")), host, "localhost"]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, spared))
