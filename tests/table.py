"""The shared test table: every method, at layers that a six-layer model has, and its keep-everything form.

A new method adds one row and is then held to every law.
"""

from feathervlm import methods as m

METHODS = {
    "feather": m.Feather(layers=(2, 4), keep=0.4),
    "feather-fixed": m.Feather(layers=(2, 4), keep=0.4, fixed=True),
    "fastv": m.FastV(layer=2),
    "fastv-all": m.FastV(layer=2, over="all"),
    "fastv-no-rope": m.FastV(layer=3, rope=False),
    "uniform-0": m.Uniform(layer=0),
    "knn": m.KNN(layer=2, count=6, features="projected"),
    "ensemble": m.Ensemble(layer=1),
    "fastervlm": m.FasterVLM(),
    "pyramiddrop": m.PyramidDrop(layers=(1, 3, 4)),
    "pyramiddrop-baseline": m.PyramidDrop(layers=(1, 3, 4), form="baseline"),
    "random": m.RandomKeep(layer=2),
    "pool": m.AveragePool(),
    "pool-later": m.AveragePool(layer=3, stride=4),
    "visionzip": m.VisionZip(dominant=0.3, contextual=0.15),
    "vscan": m.VScan(layers=(0, 1), keep=0.5, shallow=0, window=2),
    "vscan-qwen": m.VScan(layers=(1, 4), keep=0.4, form="qwen", shallow=0),
    "prumerge": m.PruMerge(layer=1),
    "prumerge-plus": m.PruMerge(plus=True),
    "divprune": m.DivPrune(keep=0.25),
    "greedyprune": m.GreedyPrune(layer=4, tau=0.3),
    "vispruner": m.VisPruner(),
    "holov": m.HoloV(chunks=4),
    "hiprune": m.HiPrune(),
    "shuffled-positions": m.ShuffledPositions(),
    "shuffled-feather": m.ShuffledPositions(m.Feather(layers=(2, 4), keep=0.4), seed=1),
    "before-llm": m.BeforeLLM(m.Feather(layers=(1, 3), keep=0.5)),
    "text-only": m.TextOnly(),
}

KEEP_ALL = {
    "feather": m.Feather(layers=(2, 4), keep=1.0),
    "feather-fixed": m.Feather(layers=(2, 4), keep=1.0, fixed=True),
    "fastv": m.FastV(layer=2, keep=1.0),
    "fastv-all": m.FastV(layer=2, keep=1.0, over="all"),
    "uniform-0": m.Uniform(layer=0, stride=1),
    "knn": m.KNN(layer=2, count=10_000, features="projected"),
    "ensemble": m.Ensemble(layer=1, keep=1.0),
    "fastervlm": m.FasterVLM(keep=1.0),
    "pyramiddrop": m.PyramidDrop(layers=(1, 3, 4), keep=1.0),
    "pyramiddrop-baseline": m.PyramidDrop(layers=(1, 3, 4), keep=1.0, form="baseline"),
    "random": m.RandomKeep(layer=2, keep=1.0),
    "pool": m.AveragePool(stride=1),
    "pool-later": m.AveragePool(layer=3, stride=1),
    "visionzip": m.VisionZip(dominant=1.0, contextual=0.15),
    "vscan": m.VScan(layers=(0, 3), keep=1.0, then=1.0, shallow=0, window=2),
    "vscan-qwen": m.VScan(layers=(1, 4), keep=1.0, then=1.0, form="qwen", shallow=0),
    "divprune": m.DivPrune(keep=1.0),
    "greedyprune": m.GreedyPrune(layer=4, keep=1.0),
    "vispruner": m.VisPruner(keep=1.0),
    "holov": m.HoloV(keep=1.0),
    "hiprune": m.HiPrune(keep=1.0),
    "before-llm": m.BeforeLLM(m.FastV(layer=2, keep=1.0)),
}
