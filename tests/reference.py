"""Selectors and criteria once more, one image at a time in plain Python: what the fast ones are compared with.

Features are arrays (tokens, dim), scores lists, and results sets of token numbers. Cosines are rounded to float32, as
in the library, so that equal ones are equal; all else follows the papers and shares no code with the library.
"""

import math
from fractions import Fraction

import numpy as np


def cosines(features):
    """Float32 (tokens, tokens)."""
    wide = np.asarray(features, dtype=np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return (unit @ unit.T).astype(np.float32)


def pools(count, total, first):
    """Steps of a greedy choice: the candidates of each, the given ones before all others."""
    kept = []
    while len(kept) < min(count, total):
        left = [i for i in range(total) if i not in kept]
        yield kept, [i for i in left if i in first] or left


def max_min(features, count, first=()):
    similar, kept, total = cosines(features), [], len(features)
    for kept, pool in pools(count, total, first):
        others = kept or None
        rivals = {i: others or [j for j in range(total) if j != i] for i in pool}
        apart = {i: np.float32(1) - max((similar[i, j] for j in rivals[i]), default=np.float32(-np.inf)) for i in pool}
        kept.append(min(pool, key=lambda i, apart=apart: (-apart[i], i)))
    return set(kept)


def dpp(features, count, relevance=None, first=()):
    """By determinants of the kernel, without any factorisation."""
    total = len(features)
    wide = np.asarray(features, dtype=np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    r = np.ones(total)
    if relevance is not None and total:
        r = np.asarray(relevance, dtype=np.float32)
        r = (r - r.min()) / (r.max() - r.min()) if r.max() > r.min() else np.ones_like(r)
    kernel = r[:, None] * (unit @ unit.T) * r[None, :]
    quantum = 2.0**-24 * max(kernel.diagonal().max(initial=0.0), 1e-300)
    spanning = []  # picks that added volume; others have none to divide by
    kept = []
    for kept, pool in pools(count, total, first):
        inverse = np.linalg.inv(kernel[np.ix_(spanning, spanning)]) if spanning else np.zeros((0, 0))
        gain = {}
        for i in pool:
            row = kernel[i, spanning]
            gain[i] = round((kernel[i, i] - row @ inverse @ row) / quantum)
        if max(gain.values()) > 0:
            pick = min(pool, key=lambda i, gain=gain: (-gain[i], i))
            spanning.append(pick)
        else:
            pick = min(pool, key=lambda i: (-r[i], i))
        kept.append(pick)
    return set(kept)


def greedy(scores, features, count, tau, first=()):
    similar, kept = cosines(features), []
    for kept, pool in pools(count, len(scores), first):
        fine = [i for i in pool if all(similar[i, j] <= tau for j in kept)] or pool
        kept.append(min(fine, key=lambda i: (-scores[i], i)))
    return set(kept)


def rest(total, count, first):
    """(certain, pool, wanted) when some tokens come first."""
    first = set(first)
    if len(first) > count:
        return set(), sorted(first), count
    return first, [i for i in range(total) if i not in first], min(count, total) - len(first)


def dedup(scores, features, count, per_round=8, first=()):
    similar = cosines(features)
    certain, pool, wanted = rest(len(scores), count, first)
    line = sorted(pool, key=lambda i: (-scores[i], i))
    while len(line) > wanted > 0:
        a, b = line[::2], line[1::2]
        leave = min(per_round, len(line) - wanted, len(a))
        near = {i: max((similar[i, j] for j in b), default=-1) for i in a}
        a = sorted(
            a, key=lambda i, near=near, line=line: (-near[i], -line.index(i))
        )  # of equals the one behind is in front
        line = a[leave:] + b
    return certain | set(line if wanted > 0 else [])


def far(pivots, features, count, first=()):
    similar = cosines(features)
    certain, pool, wanted = rest(len(features), count, first)
    chosen = [i for i in pool if i in pivots][:wanted]
    pool, wanted = [i for i in pool if i not in pivots], wanted - len(chosen)
    for number, pivot in enumerate(sorted(pivots)):
        share = wanted // len(pivots) + (number < wanted % len(pivots))
        taken = sorted(pool, key=lambda i, pivot=pivot: (similar[i, pivot], i))[:share]
        chosen, pool = chosen + taken, [i for i in pool if i not in taken]
    return certain | set(chosen)


def fence(scores, factor):
    low, high = np.quantile(np.asarray(scores, dtype=np.float64), [0.25, 0.75])
    return high + factor * (high - low)


def above(scores, bound):
    """All above a bound, at least the best."""
    if not len(scores):
        return set()
    return {i for i, score in enumerate(scores) if score > bound} | {int(np.argmax(scores))}


def quotas(wanted, weights, sizes, spare="fraction"):
    """Shares of zones, by offering again and again what full zones refuse, in exact arithmetic.

    Weights are means of floats, whose last bits depend on the order of a sum: what differs by less than 2**-20 of a
    token counts as equal, as it does in the fast path.
    """
    weights = [Fraction(float(weight)) if size else Fraction(0) for weight, size in zip(weights, sizes, strict=True)]
    exact = [Fraction(0)] * len(sizes)
    for given in (weights, [Fraction(1)] * len(sizes)):
        while (left := wanted - sum(exact)) > 0:
            hungry = [z for z, size in enumerate(sizes) if exact[z] < size and given[z] > 0]
            if not hungry:
                break
            total = sum(given[z] for z in hungry)
            for z in hungry:
                exact[z] = min(Fraction(sizes[z]), exact[z] + left * given[z] / total)
            if not any(exact[z] == sizes[z] for z in hungry):
                break
    step = 2**20
    whole = [min(math.floor(part + Fraction(1, step)), size) for part, size in zip(exact, sizes, strict=True)]
    worth = weights if spare == "weight" else [round((p - down) * step) for p, down in zip(exact, whole, strict=True)]
    with_room = [z for z, size in enumerate(sizes) if whole[z] < size]
    for z in sorted(with_room, key=lambda z: (-worth[z], z))[: wanted - sum(whole)]:
        whole[z] += 1
    return whole


def zoned(scores, zones, quota, pool):
    """The best of each zone of a pool; zones are hashable, quota by zone."""
    chosen = set()
    for zone, count in quota.items():
        members = [i for i in pool if zones[i] == zone]
        chosen |= set(sorted(members, key=lambda i: (-scores[i], i))[:count])
    return chosen


def chunks(total, count):
    """The run of every token when a sequence is cut into `count` runs, the first of which take the odd tokens."""
    return [run for run, part in enumerate(np.array_split(np.arange(total), count)) for _ in part]


def variety(features, zones):
    """Variance of the cosines to all other tokens of the zone."""
    similar = cosines(features).astype(np.float64)
    found = []
    for i, zone in enumerate(zones):
        row = [similar[i, j] for j, other in enumerate(zones) if other == zone and j != i]
        found.append(np.var(row) if row else 0.0)
    return np.array(found)


def dilated(chosen, cells):
    """A choice and the cells that share a side with one of it; cells are (plane, frame, row, col)."""
    where = {cell: i for i, cell in enumerate(cells)}
    result = set(chosen)
    for i in chosen:
        plane, frame, row, col = cells[i]
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            result |= {where[around] for around in [(plane, frame, row + down, col + right)] if around in where}
    return result


def density_peaks(features, count):
    """The `count` tokens with the highest density, of as many neighbours, times distance to a denser one."""
    n = len(features)
    far = [[np.linalg.norm(a - b) / math.sqrt(len(a)) for b in features] for a in features]
    density = [math.exp(-np.mean(np.square(sorted(row)[:count]))) for row in far]
    score = []
    for i in range(n):
        denser = [far[i][j] for j in range(n) if (-density[j], j) < (-density[i], i)]
        score.append(density[i] * (min(denser) if denser else max(map(max, far))))
    return sorted(sorted(range(n), key=lambda i: (-score[i], i))[:count])


def recycled(scores, features, count, share=0.3, group=10):
    """What stays of one image, and where each token to be clustered goes; without a `share` none is."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept, rest = order[:count], order[count:]
    if share is None or not rest:
        return sorted(kept), {}
    pool = sorted(rest[: int(len(rest) * share) + 1])
    centres = [pool[i] for i in density_peaks(features[pool], min(len(pool) // group + 1, len(pool)))]
    went = {}
    for token in pool:
        near = min(centres, key=lambda centre: (np.linalg.norm(features[token] - features[centre]), centre))
        went[token] = token if token in centres else near
    return sorted(kept + centres), went
