"""The index of this process among several, which sets its part of the work and its accelerator.

Launchers set it in the environment.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from feathervlm.core.errors import PruningError


@dataclass(frozen=True)
class Shard:
    """The part of the work that this process does.

    Attributes:
        rank: Index of the process.
        world: Number of processes.
        local: Index of the process on this machine, and of its accelerator.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Shard":
        """Read the variables that `accelerate launch` and `torchrun` set.

        Raises:
            PruningError: The variables are not numbers, or contradict each other.
        """
        values = {name: environment.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
        values["LOCAL_RANK"] = environment.get("LOCAL_RANK", values["RANK"])
        if not all(value.isdecimal() for value in values.values()) or int(values["RANK"]) >= int(values["WORLD_SIZE"]):
            raise PruningError(
                f"{', '.join(f'{name}={value}' for name, value in values.items())} do not say which process this is; "
                "start several with `torchrun` or `accelerate launch`, or leave these variables out."
            )
        return cls(*map(int, values.values()))

    def device(self, device: torch.device) -> str:
        """Return the accelerator of this process if there are several processes and the device has no index."""
        if self.world == 1 or device.type == "cpu" or device.index is not None:
            return str(device)
        return f"{device.type}:{self.local % torch.accelerator.device_count()}"


ALONE = Shard()
"""The shard of a single process, which does all the work."""
