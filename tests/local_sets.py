"""All twelve data sets in small, as their publishers write them: what fields there are, not what is in them."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

PEOPLE = ["two", "2", "Two.", "2", "three", "2", "two", "2", "2", "2"]


def make(root: Path) -> Path:
    """Write them below `root`."""
    for name, content in files():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
    for place, name in enumerate(pictures()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (640, 480) if "OCID" in name else (200, 100 + 10 * place)
        Image.linear_gradient("L").rotate(40 * place).resize(size).save(path)
    return root


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def files() -> Iterator[tuple[str, Any]]:
    yield "vsr/test.jsonl", lines(*(statement(number) for number in range(4)))
    yield "tallyqa/test.json", [count(number) for number in range(4)]
    yield "ocid-ref/val_expressions.json", {str(7 + number): sentence(number) for number in range(5)}
    yield (
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"image_id": 9, "question": "How many?", "question_id": 9000 + n} for n in range(3)]},
    )
    yield (
        "vqav2/v2_mscoco_val2014_annotations.json",
        {
            "annotations": [
                {
                    "question_id": 9000 + n,
                    "image_id": 9,
                    "question_type": "how many",
                    "answer_type": ("number", "other", "yes/no")[n],
                    "multiple_choice_answer": "2",
                    "answers": people(),
                }
                for n in range(3)
            ]
        },
    )
    yield (
        "gqa/testdev_balanced_questions.json",
        {
            "20": {"imageId": "n1", "question": "What is it?", "answer": "t-shirt", "isBalanced": True},
            "3": {"imageId": "n1", "question": "Is it red?", "answer": "yes", "isBalanced": True},
        },
    )
    yield (
        "vizwiz/val.json",
        [
            {"image": "VizWiz_val_0.jpg", "question": "What is this?", "answers": people(), "answerable": n % 2}
            for n in range(3)
        ],
    )
    yield (
        "textvqa/TextVQA_0.5.1_val.json",
        {
            "data": [
                {"question_id": 34602 + n, "question": "what brand?", "image_id": "ab", "answers": PEOPLE}
                for n in range(2)
            ]
        },
    )
    for subset in ("adversarial", "popular", "random"):
        rows = 2 if subset == "random" else 3
        yield (
            f"pope/coco_pope_{subset}.json",
            lines(
                *(
                    {
                        "question_id": n + 1,
                        "image": "COCO_val2014_000000000009.jpg",
                        "text": "Is there a dog in the image?",
                        "label": ("yes", "no")[n % 2],
                    }
                    for n in range(rows)
                )
            ),
        )
    yield "ai2d/ai2d_test_ids.csv", "2\n71\n"
    for number in (2, 10):
        yield (
            f"ai2d/questions/{number}.png.json",
            {
                "imageName": f"{number}.png",
                "questions": {
                    f"What is {letter}?": {
                        "answerTexts": ["a frog", "a fly", "a fox", "none"],
                        "correctAnswer": place,
                        "abcLabel": False,
                        "questionId": f"{number}.png-{place}",
                    }
                    for place, letter in enumerate("XY")
                },
            },
        )
    for name, refs in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        yield f"refcoco/{name}/instances.json", {"annotations": [{"id": 55, "bbox": [20.0, 10.0, 100.0, 50.0]}]}
        yield f"refcoco/{name}/refs({refs}).p", pickle.dumps([reference("val", 1), reference("train", 2)], protocol=2)


def people() -> list[dict[str, Any]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(PEOPLE)]


def statement(number: int) -> dict[str, Any]:
    return {
        "image": "000000000017.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000000017.jpg",
        "caption": f"The cat is {('above', 'under', 'beside', 'inside')[number]} the bag.",
        "label": number % 2,
        "relation": "above",
        "subj": "cat",
        "obj": "andbag",
        "annotator_id": 2,
        "vote_true_validator_id": "[1]",
        "vote_false_validator_id": "[]",
    }


def count(number: int) -> dict[str, Any]:
    return {
        "answer": (0, 3, 15, 1)[number],
        "data_source": "amt",
        "image": f"VG_100K{'_2' if number % 2 else ''}/5.jpg",
        "image_id": 5,
        "issimple": number < 3,
        "question": "How many dogs are there?",
        "question_id": 300 + number,
    }


def sentence(number: int) -> dict[str, Any]:
    return {
        "seq_id": 1,
        "scene_id": 4,
        "take_id": (0, 9, 10, 16, 17)[number],
        "scene_path": "ARID10/floor/top/box/seq36/rgb/r.png",
        "sub_dataset": "ARID10",
        "class": "bowl",
        "sentence": "the bowl behind the box",
        "tokens": ["the", "bowl"],
        "bbox": "[64, 48, 320, 240]",
        "sentence_type": "l",
    }


def reference(split: str, number: int) -> dict[str, Any]:
    return {
        "ref_id": number,
        "ann_id": 55,
        "category_id": 1,
        "file_name": "COCO_train2014_000000000021_0.jpg",
        "image_id": 21,
        "split": split,
        "sent_ids": [0, 1],
        "sentences": [
            {"sent_id": n, "sent": f"person {n}", "raw": f"Person {n}!", "tokens": ["person"]} for n in range(2)
        ],
    }


def pictures() -> list[str]:
    return [
        "coco/train2017/000000000017.jpg",
        "visual-genome/VG_100K/5.jpg",
        "visual-genome/VG_100K_2/5.jpg",
        "ocid-ref/OCID-dataset/ARID10/floor/top/box/seq36/rgb/r.png",
        "coco/val2014/COCO_val2014_000000000009.jpg",
        "gqa/images/n1.jpg",
        "vizwiz/val/VizWiz_val_0.jpg",
        "textvqa/train_images/ab.jpg",
        "ai2d/images/2.png",
        "ai2d/images/10.png",
        "coco/train2014/COCO_train2014_000000000021.jpg",
    ]
