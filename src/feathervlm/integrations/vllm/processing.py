"""The processor of a pruning model: how many placeholders every picture gets, and what cannot be had.

It runs in the server's own process, so whatever it refuses is one client's error 400.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems
from vllm.multimodal.processing import PromptReplacement

from feathervlm.core.errors import PruningError
from feathervlm.core.layout import picture_of, tokens_of
from feathervlm.integrations.vllm.counters import count
from feathervlm.serving.check import check_plan
from feathervlm.serving.http import METHOD, UNPRUNED
from feathervlm.serving.plan import ServingPlan, plan_of

PROMPT = "feathervlm_prompt"
"""Name of the field with the token ids of the prompt, for methods that read the text."""
LONGEST_SPEC = 1000
"""Number of characters of the longest method that a client may send."""
REMEMBERED = 256
"""Number of methods whose checks are remembered."""


class FamilyGeometry:
    """What is known of a model's pictures where it is served.

    Attributes:
        placeholder: Attribute of the config with the id of the placeholder.
        axes: Number of positions of every token.
    """

    placeholder: ClassVar[str]
    axes: ClassVar[int] = 1

    @classmethod
    def token(cls, config: Any) -> int:
        """Return the id of the placeholder."""
        return int(getattr(config, cls.placeholder))

    @classmethod
    def grid(cls, config: Any, item: Any) -> tuple[int, int, int]:
        """Return (frames, rows, cols) of a picture.

        Args:
            config: Config of the model.
            item: What the processor made of the picture.
        """
        raise NotImplementedError

    @classmethod
    def encoder_layers(cls, config: Any) -> int | None:
        """Return the number of layers of the vision encoder that run and can be looked into; None if none can."""
        return None

    @classmethod
    def images(cls, processed: Mapping[str, Any]) -> int:
        """Return the number of pictures that the processor has processed."""
        return len(processed.get("pixel_values", ()))


def own_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return processor arguments without those of this package, which the model's own processor does not know."""
    return {name: value for name, value in arguments.items() if name not in (METHOD, PROMPT)}


def read_plan(field: Tensor, config: Any) -> ServingPlan | None:
    """Return the plan that the field `METHOD` of a picture carries; None if the picture is not pruned."""
    spec = bytes(field.tolist()).decode()
    return None if spec in UNPRUNED else plan_of(spec, config.get_text_config().num_hidden_layers)


class PruningInfo(FamilyGeometry):
    """A mixin for vLLM's processing info of a model."""

    def plan(self: Any, arguments: Mapping[str, Any]) -> ServingPlan | None:
        """Return the plan of a request: its own, else the server's; None if it is not pruned.

        Args:
            arguments: Processor arguments of the request.

        Raises:
            PruningError: If the model cannot be served with this method.
        """
        server = self.ctx.get_mm_config().mm_processor_kwargs or {}
        spec = arguments.get(METHOD, server.get(METHOD))
        if spec is None or (isinstance(spec, str) and spec in UNPRUNED):
            return None
        if not isinstance(spec, str) or len(spec) > LONGEST_SPEC:
            raise PruningError(
                f"{METHOD}={str(spec)[:40]!r} is not a method; write a text such as 'divprune:keep=0.25', of at most "
                f"{LONGEST_SPEC} characters."
            )
        if spec.strip().endswith(".json"):
            raise PruningError(f"{spec!r} is a file, and a server reads none for its clients; write the method itself.")
        plans: dict[str, ServingPlan] = self.__dict__.setdefault("_plans", {})
        if spec not in plans:
            config = self.get_hf_config()
            plan = check_plan(spec, config, self.encoder_layers(config))
            if len(plans) >= REMEMBERED:
                plans.clear()
            plans[spec] = plan
        return plans[spec]

    def get_hf_processor(self, **arguments: object) -> Any:
        """Return the model's own processor."""
        return super().get_hf_processor(**own_arguments(arguments))  # type: ignore[misc]


class PruningProcessor(FamilyGeometry):
    """A mixin for vLLM's processor of a model."""

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request, and count its visual tokens.

        Raises:
            PruningError: If the request cannot be pruned with its method.
        """
        result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        ranges = result["mm_placeholders"].get("image", ())
        if not ranges:
            return result
        plan = self.info.plan(inputs.hf_processor_mm_kwargs)
        kept = sum(place.get_num_embeds() for place in ranges)
        tokens = kept if plan is None else self._unpruned(result)
        if plan is not None and self.axes == 1 and plan.preserves:
            length = len(result["prompt_token_ids"]) - kept + tokens
            longest = self.info.get_hf_config().get_text_config().max_position_embeddings
            if length > longest:
                raise PruningError(
                    f"The prompt has {length} tokens before pruning, whose positions the rest keeps, and the model "
                    f"takes {longest}; send fewer pictures, or prune with positions=renumber."
                )
        count("unpruned" if plan is None else str(plan.method), tokens, kept)
        return result

    def _unpruned(self, result: Any) -> int:
        """Return the number of tokens of all pictures before pruning."""
        sizes: dict[str, int] = self.__dict__.setdefault("_sizes", {})
        if len(sizes) > 100_000:
            sizes.clear()
        hashes = result["mm_hashes"]["image"]
        for identifier, item in zip(hashes, result["mm_kwargs"]["image"], strict=True):
            if item is not None:  # of a picture that the processor has cached only the hash may be passed on
                sizes[identifier] = tokens_of(picture_of(self.grid(self.info.get_hf_config(), item)))
        return sum(sizes.get(identifier, 0) for identifier in hashes)

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        plan = self.info.plan(inputs.hf_processor_mm_kwargs)
        if plan is not None:
            self._check(plan, inputs)
            if plan.reads_text:
                # As an argument it is part of the picture's hash: neither what the encoder returned nor a prefix is
                # shared between questions.
                inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, PROMPT: list(inputs.prompt)}
        return super()._cached_apply_hf_processor(inputs, timing_ctx)  # type: ignore[misc]

    def _check(self, plan: ServingPlan, inputs: Any) -> None:
        items = inputs.mm_data_items
        others = [name for name, some in items.items() if name != "image" and len(some)]
        if others:
            raise PruningError(f"{plan.method} prunes images, and the prompt has a {others[0]}; send it unpruned.")
        if isinstance(items.get("image"), ImageEmbeddingItems):
            raise PruningError(f"{plan.method} prunes pictures, and the prompt has embeddings; send it unpruned.")
        token = self.token(self.info.get_hf_config())
        if plan.reads_text and list(inputs.prompt).count(token) > 1:
            raise PruningError(
                f"{plan.method} reads the text, which a server can do for one picture in a prompt; send one, or "
                "choose a method that does not read it."
            )

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Any) -> Any:
        return super()._call_hf_processor(hf_data, own_arguments(hf_kwargs))  # type: ignore[misc]

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        processed = super()._postprocess_hf_mm_data(  # type: ignore[misc]
            mm_inputs, hf_processor_mm_kwargs, processed_data
        )
        plan, images = self.info.plan(hf_processor_mm_kwargs), self.images(processed)
        if images:
            spec = UNPRUNED[-1] if plan is None else plan.spec
            processed[METHOD] = [torch.tensor(list(spec.encode()), dtype=torch.uint8)] * images
        if images and plan is not None and plan.reads_text:
            prompt = hf_processor_mm_kwargs.get(PROMPT) or [self.token(self.info.get_hf_config()), 0]
            processed[PROMPT] = [torch.tensor(prompt)] * images
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> dict[str, Any]:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        # Of a picture whose tokens a prefix cache holds, vLLM passes on only what is kept on the CPU, and the positions
        # of the rest of the prompt depend on its method.
        method = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        return fields | {METHOD: method, PROMPT: MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items, hf_processor_mm_kwargs, out_mm_kwargs
        )
        plan = self.info.plan(hf_processor_mm_kwargs)
        if plan is None:
            return updates  # type: ignore[no-any-return]  # vLLM's own
        config = self.info.get_hf_config()
        token = self.token(config)

        def placeholders(index: int) -> list[int]:
            return [token] * plan.kept(self.grid(config, out_mm_kwargs["image"][index]))

        pruned = PromptReplacement(modality="image", target=[token], replacement=placeholders)
        return [pruned if update.modality == "image" else update for update in updates]
