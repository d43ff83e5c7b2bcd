"""Draw the picture of the README: a question that FastV misses and FEATHER answers.

The question follows a rule: it is the first held-out `locate` question of the shipped model, by its number, that the
unpruned model answers, FastV misses and FEATHER answers, under the methods that all commands use by default. A box
counts from IoU 0.5 on.

Example: python scripts/readme_picture.py --out docs/kept.png
"""

import argparse
from pathlib import Path

from feathervlm.embedded.assets import METHODS
from feathervlm.embedded.questions import grade
from feathervlm.embedded.tasks import HELD_OUT, sample
from feathervlm.engine.report.overlay import stack
from feathervlm.evaluation.demo import DemoAnswer, draw_answer
from feathervlm.inference.answerer import Answerer
from feathervlm.inference.loading import load
from feathervlm.inference.model_spec import UNPRUNED, ModelSpec
from feathervlm.inference.prompts import Prompt

RUNS = (UNPRUNED, *METHODS)


def main() -> None:
    """Find the question and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/kept.png"))
    parser.add_argument("--limit", type=int, default=1000, help="questions to look through")
    arguments = parser.parse_args()
    answerer = Answerer(load(ModelSpec()))
    for number in range(arguments.limit):
        scene, question = sample("locate", HELD_OUT, number)
        prompt = Prompt(question.text, (scene.image,))
        answers = [DemoAnswer(run, question, answerer.ask([prompt], run)[0]) for run in RUNS]
        right = [grade(question, one.answer.text)[0] for one in answers]
        if right == [True, False, True]:
            print(f"question {number}: {question.text}")
            stack([draw_answer(scene.image, one, answerer.processor) for one in answers]).save(arguments.out)
            print(f"wrote {arguments.out}")
            return
    raise SystemExit(f"none of the first {arguments.limit} questions follows the rule; raise --limit")


if __name__ == "__main__":
    main()
