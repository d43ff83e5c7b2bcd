"""One prompt of a bare Llama, layer by layer on plain tensors: rows that run, rows that are only read, and the rest."""

from math import sqrt

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class Naive:
    """The states of one prompt, and what happens to its visual tokens.

    Attributes:
        states: States of all rows, (sequence, dim); those of rows that do not run stay as they are.
        image: Positions of the visual tokens.
    """

    def __init__(self, llama, embeddings, image):
        self.llama, self.states, self.image = llama, embeddings[0].clone(), list(image)
        self.text = [place for place in range(len(self.states)) if place not in set(self.image)]
        self.running, self.frozen, self.candidates = list(range(len(self.image))), [], list(range(len(self.image)))
        self.groups = {}
        self.logits = None

    def leave(self, kept, how="drop", groups=None):
        """Choose tokens from all candidates; the others leave."""
        self._return_groups()
        others = [token for token in self.candidates if token not in kept]
        self.running, self.frozen = sorted(kept), others if how == "freeze" else []
        if how == "drop":
            self.candidates = self.running
        if groups:
            self._group(others, groups)

    def run(self, layers):
        """Run layers on the rows that run."""
        rows = sorted([*self.text, *(self.image[token] for token in [*self.running, *self.groups])])
        read = sorted([*rows, *(self.image[token] for token in self.frozen)])
        for index in layers:
            block = self.llama.model.layers[index]
            attended = self._attend(index, rows, read)[1].transpose(0, 1).flatten(1)
            states = self.states[rows] + block.self_attn.o_proj(attended)
            self.states[rows] = states + block.mlp(block.post_attention_layernorm(states))
        self.logits = self.llama.lm_head(self.llama.model.norm(self.states[self.text[-1]]))

    def attention(self, layer, rope=True, over="visual"):
        """Probabilities of the last row, (heads, candidates), and values, (heads, candidates, dim), of a layer on the
        states as they are."""
        self._return_groups()
        read = sorted([*self.text, *(self.image[token] for token in self.candidates)])
        place = [read.index(self.image[token]) for token in self.candidates]
        logits, _, values = self._attend(layer, self.text[-1:], read, rope)
        if over == "visual":
            return logits[:, 0, place].softmax(-1), values[:, place]
        return logits[:, 0].softmax(-1)[:, place], values[:, place]

    def best(self, scores, count):
        """The candidates with the highest scores."""
        order = torch.sort(scores, descending=True, stable=True).indices[:count].tolist()
        return {self.candidates[place] for place in order}

    def _attend(self, index, rows, read, rope=True):
        block, config = self.llama.model.layers[index], self.llama.config
        normed = block.input_layernorm(self.states)
        heads = config.num_attention_heads
        query = block.self_attn.q_proj(normed[rows]).view(len(rows), heads, -1).transpose(0, 1)
        key, value = (
            projection(normed[read]).view(len(read), config.num_key_value_heads, -1).transpose(0, 1)
            for projection in (block.self_attn.k_proj, block.self_attn.v_proj)
        )
        rows, read = torch.tensor(rows), torch.tensor(read)
        if rope:
            query = self._rotated(query, rows)
            key = self._rotated(key, read)
        key, value = (part.repeat_interleave(heads // len(part), 0) for part in (key, value))
        logits = query @ key.transpose(1, 2) / sqrt(config.head_dim)
        logits = logits.masked_fill(read[None, None, :] > rows[None, :, None], float("-inf"))
        return logits, logits.softmax(-1) @ value, value

    def _rotated(self, states, places):
        tables = self.llama.model.rotary_emb(states, places[None])
        return apply_rotary_pos_emb(states[None], states[None], *tables)[0][0]

    def _group(self, others, count):
        """Let means of groups around density peaks run in the row of the member nearest to each."""
        own = {token: self.states[self.image[token]].clone() for token in others}
        states = torch.stack([own[token] for token in others])
        unit = torch.nn.functional.normalize(states.double(), dim=-1)
        far = torch.cdist(unit, unit) / sqrt(states.shape[1])
        sparsity = far.sort(1).values[:, :count].square().mean(1)
        worth = []
        for one in range(len(others)):
            denser = [float(far[one, two]) for two in range(len(others)) if sparsity[two] < sparsity[one]]
            worth.append(float((-sparsity[one]).exp()) * min(denser, default=float(far.max())))
        peaks = sorted(range(len(others)), key=lambda one: -worth[one])[:count]
        members = {peak: [] for peak in peaks}
        for one in range(len(others)):
            members[max(peaks, key=lambda peak: float(unit[one] @ unit[peak]))].append(one)
        for group in members.values():
            mean = states[group].mean(0)
            toward = torch.nn.functional.normalize(mean.double(), dim=0)
            row = others[max(group, key=lambda one: float(unit[one] @ toward))]
            self.groups[row] = mean.clone(), {others[one]: own[others[one]] for one in group}
            self.states[self.image[row]] = mean

    def _return_groups(self):
        changes = {row: self.states[self.image[row]] - mean for row, (mean, _) in self.groups.items()}
        for row, (_, members) in self.groups.items():
            for token, own in members.items():
                self.states[self.image[token]] = own + changes[row]
        self.groups = {}
