"""The command that starts vLLM's own server with a pruned model; nothing here imports vLLM."""

import json
import os
import sys
from collections.abc import Sequence

from feathervlm.core.errors import PruningError
from feathervlm.embedded.assets import SHIPPED
from feathervlm.inference.loading import load_config
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.integrations.vllm.architectures import architecture_of
from feathervlm.serving.check import check_plan

OWN = ("--hf-overrides", "--mm-processor-kwargs", "--trust-request-mm-kwargs", "--model", "--host", "--port")
"""Options of vLLM that the command sets itself."""


def server_command(
    model: ModelSpec, method: str, host: str, port: int, per_request: bool, more: Sequence[str] = ()
) -> list[str]:
    """Return the words of the command.

    Args:
        model: The model.
        method: The method of requests that do not name one; `UNPRUNED` to prune nothing.
        host: Address to listen on.
        port: Port to listen on.
        per_request: Whether requests may name a method.
        more: Further options of vLLM.

    Raises:
        PruningError: If the model cannot be served with this method, or `more` has options that the command sets.
    """
    for word in more:
        if word.partition("=")[0] in OWN:
            raise PruningError(f"feathervlm serve sets {word.partition('=')[0]} itself; leave it out after the --.")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "feathervlm" not in allowed.split(","):
        raise PruningError(f"VLLM_PLUGINS={allowed!r} keeps vLLM from loading feathervlm; add feathervlm to it.")
    config = load_config(model.path)
    architecture = architecture_of(config)
    if method != UNPRUNED:
        if method.strip().endswith(".json"):
            raise PruningError(f"{method} is a file, which vLLM's processes do not read; write the method itself.")
        check_plan(method, config, architecture.encoder_layers(config))
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model.path]
    if model.model == SHIPPED:
        words += ["--served-model-name", SHIPPED]
    words += ["--host", host, "--port", str(port)]
    words += ["--hf-overrides", json.dumps({"architectures": [architecture.name]})]
    if method != UNPRUNED:
        words += ["--mm-processor-kwargs", json.dumps({"feathervlm": method})]
    if per_request:
        words.append("--trust-request-mm-kwargs")
    if model.dtype != "auto":
        words += ["--dtype", model.dtype]
    return [*words, *more]
