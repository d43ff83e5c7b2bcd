"""`feathervlm serve`: an OpenAI-compatible server of a pruned model."""

import os
import shlex
from typing import Annotated

import typer

from feathervlm.cli import console
from feathervlm.cli.options import Attention, Device, Dtype, Load, Methods, Model, read_method
from feathervlm.embedded.assets import SHIPPED, default_methods
from feathervlm.utils import progress

ENGINES = ("transformers", "vllm")


def serve(
    context: typer.Context,
    model: Model = SHIPPED,
    method: Methods = None,
    engine: Annotated[
        str,
        typer.Option(metavar="NAME", help="transformers: any method, one request at a time. vllm: many at a time."),
    ] = "transformers",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    per_request: Annotated[
        bool, typer.Option("--per-request", help="Let requests choose: mm_processor_kwargs={'feathervlm': SPEC}.")
    ] = False,
    print_only: Annotated[
        bool, typer.Option("--print", help="Check everything, print vLLM's command, and do not start it.")
    ] = False,
    load: Load = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Serve a pruned model to OpenAI clients.

    `--engine transformers` is `transformers serve` with the model pruned: every method and model of this package.
    `--engine vllm` checks the method and hands over to vLLM's server, with all that follows `--`; tokens leave before
    the language model, so FEATHER is written before-llm:method=(feather:fixed=true). /metrics counts visual
    tokens and kept ones. `--method none` serves unpruned.

    Examples:

    \b
    feathervlm serve --method feather:layers=4+9
    feathervlm serve --model ./my-llava --method feather --per-request
    feathervlm serve --model llava-hf/llava-1.5-7b-hf --engine vllm
        --method "before-llm:method=(feather:fixed=true)"
    feathervlm serve --model Qwen/Qwen2.5-VL-7B-Instruct --engine vllm
        --method divprune:keep=0.25 -- --tensor-parallel-size 2
    feathervlm serve --engine vllm --method divprune:keep=0.25 --print
    """
    from feathervlm.core.errors import PruningError

    if engine not in ENGINES:
        raise PruningError(f"--engine {engine!r} is neither transformers nor vllm; give one of these.")
    if engine == "transformers" and (print_only or context.args):
        given = "--print" if print_only else shlex.join(context.args)
        raise PruningError(f"{given} is for vLLM's command, and the engine is transformers; add --engine vllm.")
    spec = read_method(method, default_methods(model)[1] if engine == "transformers" else "divprune:keep=0.25", "serve")
    if engine == "vllm":
        _hand_over(context, model, spec, host, port, per_request, print_only, dtype)
        return
    console.require("serve", "fastapi", "uvicorn", "openai", "accelerate")
    with progress.spinner("importing transformers"):
        from feathervlm.inference.model_spec import ModelSpec
        from feathervlm.serving.transformers_server import ServerSettings
        from feathervlm.serving.transformers_server import serve as run

    typer.echo(f"serving {model} with {spec} on http://{host}:{port}/v1", err=True)
    run(ServerSettings(ModelSpec(model, device, dtype, attention), spec, host, port, per_request))


def _hand_over(
    context: typer.Context, model: str, spec: str, host: str, port: int, per_request: bool, print_only: bool, dtype: str
) -> None:
    if not print_only:
        console.require("vllm", "vllm")
    with progress.spinner("importing transformers"):
        from feathervlm.inference.model_spec import ModelSpec
        from feathervlm.integrations.vllm.command import server_command

        words = server_command(ModelSpec(model, dtype=dtype), spec, host, port, per_request, context.args)
    if print_only:
        typer.echo(shlex.join(words))
        return
    os.execv(words[0], words)
