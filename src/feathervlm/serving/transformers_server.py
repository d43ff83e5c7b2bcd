"""`transformers serve` with its one model pruned: any method, on one machine, one request at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers.cli.serve import Serve
from transformers.cli.serving.utils import GenerateManager

from feathervlm.api import prune
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.serving.http import PruningRequests, ServedRequest, TokenCounts, current


@dataclass(frozen=True)
class ServerSettings:
    """What a server serves, and where.

    Attributes:
        model: The model.
        method: The method of requests that do not name one; `UNPRUNED` to prune nothing.
        host: Address to listen on.
        port: Port to listen on.
        per_request: Whether requests may name a method.
    """

    model: ModelSpec
    method: str
    host: str
    port: int
    per_request: bool


class PruningGeneration(GenerateManager):  # type: ignore[misc]  # transformers is not typed here
    """Runs `generate` on its thread with the method of the request, and counts tokens.

    Args:
        model: The model.
        counts: Counts to add to.
    """

    def __init__(self, model: Any, counts: TokenCounts) -> None:
        super().__init__()
        self.model, self.counts = model, counts

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function that generates, for the request of this task."""
        return super().submit(self._pruned(fn), *args, **kwargs)

    def async_submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function that generates, for the request of this task."""
        return super().async_submit(self._pruned(fn), *args, **kwargs)

    def _pruned(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        request = current.get()
        if request is None or request.method is None:
            return generate

        def run(*args: Any, **kwargs: Any) -> Any:
            assert request is not None
            assert request.method is not None
            with prune(self.model, request.method) as pruning:
                result = generate(*args, **kwargs)
                self._count(request, pruning.report)
            return result

        return run

    def _count(self, request: ServedRequest, report: Any) -> None:
        if report.pruned:  # a prompt without pictures has nothing to prune
            request.visual = sum(report.layout.counts)
            request.kept = sum(map(len, report.stages[-1].kept))
            self.counts.add(request)


class PruningServe(Serve):  # type: ignore[misc]  # transformers is not typed here
    """`transformers serve` of one model.

    Args:
        settings: What to serve, and where.
        device: Device to load the model on.
        dtype: Type to load it in.
    """

    def __init__(self, settings: ServerSettings, device: str, dtype: str) -> None:
        self.settings, self.counts = settings, TokenCounts()
        super().__init__(
            force_model=settings.model.path,
            device=device,
            dtype=dtype,
            attn_implementation=settings.model.attention,
            host=settings.host,
            port=settings.port,
            non_blocking=True,  # calls start_server, once everything is made
        )

    def start_server(self) -> None:
        """Serve in this thread until interrupted, with the model pruned from the first request on."""
        self.wrap()
        self.server.run()

    def wrap(self) -> None:
        """Put pruning around the application and the generation."""
        (loaded,) = self._model_manager.loaded_models.values()
        model, settings = loaded.model, self.settings
        manager = PruningGeneration(model, self.counts)
        state: Any = self._generation_state
        state.get_manager = lambda model_id, use_cb=False: manager

        @lru_cache(maxsize=256)
        def check(method: str) -> None:
            # On the config alone, for another request may be running on the model.
            from feathervlm.inference.loading import empty_model

            prune(empty_model(model.config, settings.model.attention), method).remove()

        method = None if settings.method == UNPRUNED else settings.method
        config: Any = self.server.config
        config.app = PruningRequests(config.app, method, settings.per_request, check, settings.model.model, self.counts)


def serve(settings: ServerSettings) -> None:
    """Load the model and serve it until interrupted.

    Raises:
        PruningError: If the model cannot be loaded or pruned.
    """
    from feathervlm.inference.loading import check

    checked = check(settings.model, [settings.method])
    PruningServe(settings, str(checked.device), str(checked.dtype).removeprefix("torch."))
