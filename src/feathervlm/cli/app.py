"""`feathervlm app`: the page in the browser."""

import os
import webbrowser
from typing import Annotated

import typer

from feathervlm.cli import console
from feathervlm.cli.options import Attention, Background, Device, Dtype, Load, Model
from feathervlm.embedded.assets import SHIPPED
from feathervlm.utils import progress

TOKEN = "FEATHERVLM_TOKEN"


def open_app(
    model: Model = SHIPPED,
    load: Load = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen. Others than this machine need the token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=f"What visitors have to know; also ${TOKEN}. Default: none, or random."),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser of this machine.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = "sdpa",
    background: Background = "white",
) -> None:
    """Compare methods on a picture in the browser.

    The page shows which tokens every layer keeps, the answers, the scores, what is saved, and what looks wrong; a
    second tab shows at which budget the answer turns. It is for this machine only and sends nothing anywhere. With
    another --host, visitors have to know the token, which goes over the network unencrypted.

    Examples:

    \b
    feathervlm app
    feathervlm app --model llava-hf/llava-1.5-7b-hf --browser
    feathervlm app --host 0.0.0.0 --port 8000
    """
    console.require("app", "gradio", "matplotlib")
    token = token or os.environ.get(TOKEN) or None
    with progress.spinner("importing transformers") as say:
        from feathervlm.app.server import Served, start
        from feathervlm.inference.model_spec import ModelSpec
        from feathervlm.utils.pictures import check_background

        check_background(background)
        served = start(
            ModelSpec(model, device, dtype, attention), Served(host, port, token), background=background, say=say
        )
    with served:
        typer.echo(f"The page is at {served.address}")
        typer.echo("Press Ctrl+C to stop.", err=True)
        if browser:
            webbrowser.open(served.address)
        served.run()
