"""Which of several processes this is, and which part of the work and which accelerator is its own.

Read from the environment, as launchers set it. Knows nothing of the work.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from feathervlm.core.errors import PruningError


@dataclass(frozen=True)
class Shard:
    """Which part of the work is this process's.

    Attributes:
        rank: its number.
        world: how many there are.
        local: its number on this machine, and of its accelerator.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Shard":
        """As `accelerate launch` and `torchrun` tell their processes.

        Raises:
            PruningError: if what they tell is not what it should be.
        """
        told = {name: environment.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
        told["LOCAL_RANK"] = environment.get("LOCAL_RANK", told["RANK"])
        if not all(value.isdecimal() for value in told.values()) or int(told["RANK"]) >= int(told["WORLD_SIZE"]):
            raise PruningError(
                f"{', '.join(f'{name}={value}' for name, value in told.items())} do not say which process this is; "
                "start several with `torchrun` or `accelerate launch`, or leave these variables out."
            )
        return cls(*map(int, told.values()))

    def device(self, wanted: torch.device) -> str:
        """The accelerator of this process, where there are several processes and no number is wanted."""
        if self.world == 1 or wanted.type == "cpu" or wanted.index is not None:
            return str(wanted)
        return f"{wanted.type}:{self.local % torch.accelerator.device_count()}"


ALONE = Shard()
"""One process does it all."""
