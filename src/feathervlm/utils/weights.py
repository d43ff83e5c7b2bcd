"""Whether weights are numbers that a model can work with."""

from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from feathervlm.core.errors import PruningError
from feathervlm.utils.files import read_json
from feathervlm.utils.text import printable


def check_weights(weights: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse weights with NaN or infinity, with which every answer is noise.

    Args:
        weights: Tensors by name.
        name: What they belong to.

    Raises:
        PruningError: A weight is not a finite number.
    """
    for part, weight in weights:
        # Types of one byte belong to quantized models, whose kernels define what they mean.
        if weight.is_meta or not weight.is_floating_point() or weight.element_size() == 1:
            continue
        if not bool(weight.isfinite().all()):
            raise PruningError(f"{part} of {name} holds NaN or infinity; get the weights again.")


def check_types(folder: Path) -> None:
    """Refuse stored integers, which transformers would read as floats, unless the config says that they are quantized.

    Args:
        folder: Directory of a model; nothing is checked if there is none.

    Raises:
        PruningError: A weight is stored as an integer.
    """
    config = folder / "config.json"
    if not config.is_file() or "quantization_config" in read_json(config, "get it again"):
        return
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no dictionary
                kind = opened.get_slice(key).get_dtype()
                if key.endswith((".weight", ".bias")) and kind[0] in "IUB" and kind != "BF16":
                    raise PruningError(
                        f"{key} in {printable(path)} holds integers ({kind}) and the config names no quantization; "
                        "give weights in floating point."
                    )
