"""The pruning of a model in vLLM: the choice in the encoder step, and original positions in every step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank

from feathervlm.core.errors import Unprunable
from feathervlm.core.layout import picture_of, tokens_of
from feathervlm.core.signals import EncoderSignal
from feathervlm.integrations.vllm.encoder import gather_heads
from feathervlm.integrations.vllm.processing import METHOD, PROMPT, FamilyGeometry, read_plan
from feathervlm.serving import positions
from feathervlm.serving.choose import Chooser, ServedChoice, ServedPrompt
from feathervlm.serving.decoder import ServedDecoder
from feathervlm.serving.plan import ServingPlan

Grid = tuple[int, int, int]


class EncodedImages:
    """What the vision encoder has computed of the pictures of one step, picture by picture.

    Attributes:
        vision: Features before the projector, (tokens, dim) for every picture; empty if they are not known.
        inside: Signals from inside the encoder, for every picture; empty if there are none.
    """

    def __init__(self) -> None:
        self.vision: Sequence[Tensor] = ()
        self.inside: Sequence[dict[EncoderSignal, Tensor]] = ()


class PruningModel(FamilyGeometry):
    """A mixin for vLLM's class of a model.

    Pruned embeddings carry the shifts of their positions as further values; see `feathervlm.serving.positions`.
    """

    config: Any
    language_model: Any
    shift: Tensor
    _choosers: dict[bool, Chooser]

    def prepare(self: Any, vllm_config: Any) -> None:
        """Make what every step needs; to be called at the end of the constructor."""
        most = vllm_config.scheduler_config.max_num_batched_tokens
        # It stays at one address, so that a captured graph reads what was written before its replay.
        self.register_buffer("shift", torch.zeros(self.axes, most + 1024, dtype=torch.long), persistent=False)
        self._choosers = {}
        if self.axes == 1:
            # Positions exceed the pruned prompt's length: they go on from that of the unpruned one.
            self._lengthen_rotary_tables(vllm_config.model_config.max_model_len)

    def _lengthen_rotary_tables(self, tokens: int) -> None:
        """Make the tables of the language model's rotary embeddings longer.

        Raises:
            Unprunable: If the embedding is of a kind whose tables depend on their length.
        """
        for module in self.language_model.modules():
            table = getattr(module, "cos_sin_cache", None)
            if not isinstance(table, Tensor):
                continue
            usual, module.max_position_embeddings = (
                module.max_position_embeddings,
                (module.max_position_embeddings + tokens),
            )
            longer = module._compute_cos_sin_cache().to(table)
            module.max_position_embeddings = usual
            if not torch.equal(longer[: len(table)], table):
                raise Unprunable(
                    f"{type(module).__name__} rotates by tables that depend on their length, so the positions of "
                    "unpruned prompts cannot be kept; serve it with `feathervlm serve --engine transformers`."
                )
            module.register_buffer("cos_sin_cache", longer, persistent=False)

    # The encoder step.

    def grids(self, arguments: dict[str, Any]) -> list[Grid]:
        """Return (frames, rows, cols) of every picture of a step.

        Args:
            arguments: Arguments of `embed_multimodal`.
        """
        raise NotImplementedError

    @contextmanager
    def looking(self, plans: Sequence[ServingPlan], grids: Sequence[Grid]) -> Iterator[EncodedImages]:
        """Look into the vision encoder while it runs inside the block."""
        yield EncodedImages()

    def prompt_positions(self, before: int, grid: Grid, after: int) -> Tensor | None:
        """Return the positions of a prompt with one picture, long (axes, n); None for 0, 1, 2, ..."""
        return None

    def cells(self, grid: Grid) -> Tensor:
        """Return the shift of every token of a picture against its first token, long (axes, tokens)."""
        return positions.line_cells(tokens_of(picture_of(grid)))

    def embed_multimodal(self, **arguments: Any) -> Any:
        """Return the embeddings of the tokens that stay of every picture, with their shifts."""
        methods, prompts = arguments.pop(METHOD, None), arguments.pop(PROMPT, None)
        grids = self.grids(arguments)
        plans = [None if methods is None else read_plan(methods[row], self.config) for row in range(len(grids))]
        with self.looking([plan for plan in plans if plan is not None], grids) as encoded:
            images = super().embed_multimodal(**arguments)  # type: ignore[misc]
        if not grids:
            return images
        choices = self._choose(plans, prompts, grids, images, encoded)
        return tuple(map(self._placed, choices, plans, grids))

    def _placed(self, choice: ServedChoice, plan: ServingPlan | None, grid: Grid) -> Tensor:
        cells = self.cells(grid).to(choice.kept.device)
        if plan is not None and len(choice.kept) != plan.kept(grid):
            raise AssertionError(f"{plan.method} kept {len(choice.kept)} tokens, and {plan.kept(grid)} were planned")
        renumbers = plan is not None and not plan.preserves
        return positions.with_shifts(
            choice.states, cells[:, : len(choice.kept)] if renumbers else cells[:, choice.kept]
        )

    def _choose(
        self,
        plans: Sequence[ServingPlan | None],
        prompts: Any,
        grids: Sequence[Grid],
        images: Sequence[Tensor],
        encoded: EncodedImages,
    ) -> list[ServedChoice]:
        """Choose tokens, all pictures with one method in one batch."""
        choices: dict[int, ServedChoice] = {}
        for plan in dict.fromkeys(plans):
            rows = [row for row, other in enumerate(plans) if other == plan]
            if plan is None:
                for row in rows:
                    whole = torch.arange(len(images[row]), device=images[row].device)
                    choices[row] = ServedChoice(whole, images[row])
                continue
            served = [
                self._served(plan, grids[row], images[row], None if prompts is None else prompts[row], encoded, row)
                for row in rows
            ]
            choices.update(zip(rows, self._chooser(plan.scores).choose(plan.schedule, served), strict=True))
        return [choices[row] for row in range(len(plans))]

    def _served(
        self, plan: ServingPlan, grid: Grid, image: Tensor, prompt: Tensor | None, encoded: EncodedImages, row: int
    ) -> ServedPrompt:
        vision = encoded.vision[row] if encoded.vision else None
        inside = encoded.inside[row] if encoded.inside else {}
        served = ServedPrompt(image, picture_of(grid), vision=vision, encoder=inside)
        if not plan.reads_text or prompt is None:
            return served
        prompt = prompt.to(image.device)
        at = int((prompt == self.token(self.config)).nonzero()[0])
        embed = self.language_model.embed_input_ids
        before, after = embed(prompt[:at]).to(image), embed(prompt[at + 1 :]).to(image)
        places = self.prompt_positions(len(before), grid, len(after))
        return replace(served, before=before, after=after, positions=places)

    def _chooser(self, scores: bool) -> Chooser:
        if scores not in self._choosers:
            layers = self.language_model.model.layers if scores else None
            text = self.config.get_text_config()
            decoder = ServedDecoder(layers, text, gather_heads, get_tensor_model_parallel_rank())
            self._choosers[scores] = Chooser(decoder)
        return self._choosers[scores]

    # Positions.

    def full_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """Return the positions of a prompt with all placeholders, and the difference of the next one to its length.

        Args:
            tokens: Token ids.
            features: vLLM's features of the pictures, with their places among these tokens.
        """
        return super().get_mrope_input_positions(tokens, features)  # type: ignore[misc, no-any-return]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Return positions (3, tokens) of a pruned prompt, those of a picture's tokens without their shifts."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        placed = [
            positions.PlacedImage(feature.mm_position.offset, feature.mm_position.length, self._full(feature))
            for feature in features
            if feature.modality == "image"
        ]
        full = positions.full_prompt(input_tokens, placed)
        moved = [
            replace(feature, mm_position=replace(feature.mm_position, offset=full.columns[feature.mm_position.offset]))
            for feature in features
        ]
        places, delta = self.full_positions(full.tokens, moved)
        return places[:, full.columns].contiguous(), delta + len(full.tokens) - len(input_tokens)

    def _full(self, image: Any) -> int:
        method = None if image.data is None else image.data.get(METHOD)
        if method is None:
            raise RuntimeError("vLLM does not pass on the method of a picture; serve without a connector for encoders.")
        plan = read_plan(method.data, self.config)
        return int(image.mm_position.length) if plan is None else plan.placeholders(self.grid(self.config, image.data))

    def embed_input_ids(
        self: Any, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Return the embeddings of a step, and keep the shifts of its visual tokens for `forward`."""
        self.shift.zero_()
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            assert is_multimodal is not None
            dim = self.config.get_text_config().hidden_size
            pairs = [positions.split_shifts(part, dim) for part in multimodal_embeddings]
            at = is_multimodal.to(self.shift.device).nonzero()[:, 0]
            shifts = [shift if len(shift) else shift.new_zeros(self.axes, len(states)) for states, shift in pairs]
            self.shift[:, at] = torch.cat(shifts, 1).to(self.shift.device)
            multimodal_embeddings = [states for states, _ in pairs]
        return super().embed_input_ids(  # type: ignore[misc, no-any-return]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **arguments: Any,
    ) -> Any:
        """Run the language model at the original positions."""
        if positions.dim() == 2:
            positions = positions[: self.axes] + self.shift[:, : positions.shape[1]]
            if self.axes == 1:
                positions = positions[0]
        return super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **arguments
        )
