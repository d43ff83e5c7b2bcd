"""Annotation files that differ from those of their publishers: what is changed, and what is said of it."""

import copy
import json
import pickle

NAN, DEEP = float("nan"), "[" * 20000

FILES = {
    "vsr": "vsr/test.jsonl",
    "tallyqa": "tallyqa/test.json",
    "ocid-ref": "ocid-ref/val_expressions.json",
    "vqav2": "vqav2/v2_mscoco_val2014_annotations.json",
    "gqa": "gqa/testdev_balanced_questions.json",
    "vizwiz": "vizwiz/val.json",
    "textvqa": "textvqa/TextVQA_0.5.1_val.json",
    "pope": "pope/coco_pope_popular.json",
    "ai2d": "ai2d/questions/2.png.json",
    "refcoco": "refcoco/refcoco/instances.json",
}
"""The file of each task that is changed as a whole."""

ROWS = {
    "vsr": [("caption", None), ("caption", " "), ("caption", 3), ("label", "False"), ("label", True), ("label", 2),
            ("label", None), ("image", 17), ("image_link", "17.jpg"), ("image", "")],
    "tallyqa": [("answer", True), ("answer", 16), ("answer", "3"), ("answer", 2.0), ("answer", None), ("answer", -1),
                ("issimple", "False"), ("issimple", 0), ("issimple", None), ("question", None), ("question_id", "300"),
                ("question_id", None), ("image", ["a"])],
    "ocid-ref": [("sentence", None), ("bbox", "[1, 2, 3]"), ("bbox", "[NaN, 2, 30, 40]"), ("bbox", "[30, 2, 3, 40]"),
                 ("bbox", "[1, 2, 700, 40]"), ("bbox", "[1, 2, 1, 40]"), ("bbox", None), ("bbox", "64 48 320 240"),
                 ("bbox", [1, 2, 3, True]), ("bbox", '["1", "2", "30", "40"]'), ("take_id", 21), ("take_id", -1),
                 ("take_id", 3.7), ("take_id", True), ("take_id", "nine"), ("scene_path", None)],
    "vqav2": [("question_id", "9000"), ("answers", "two"), ("answers", []), ("answers", [{"answer": 2}]),
              ("answers", ["2"]), ("answer_type", None), ("answers", None)],
    "gqa": [("question", None), ("answer", None), ("answer", True), ("imageId", 1), ("question", "")],
    "vizwiz": [("image", None), ("answers", "two"), ("answers", []), ("answerable", "False"), ("answerable", "0"),
               ("answerable", True), ("answerable", 2), ("question", None)],
    "textvqa": [("question_id", "34602"), ("question_id", 1.5), ("answers", "two"), ("answers", [2]), ("answers", []),
                ("image_id", None), ("question", None)],
    "pope": [("label", "Yes"), ("label", True), ("label", None), ("label", "maybe"), ("text", None), ("text", ""),
             ("question_id", "1"), ("question_id", None), ("question_id", True), ("image", None)],
    "ai2d": [("answerTexts", "abcd"), ("answerTexts", ["a", "b", "c"]), ("answerTexts", ["a", "b", "c", None]),
             ("correctAnswer", True), ("correctAnswer", 4), ("correctAnswer", "1"), ("correctAnswer", -1),
             ("questionId", None), ("questionId", 7)],
    "refcoco": [("bbox", [1, 2, 3]), ("bbox", [1, 2, 3, NAN]), ("bbox", [1, 2, 0, 5]), ("bbox", [1, 2, -3, 5]),
                ("bbox", [-1, 2, 3, 5]), ("bbox", "1 2 3 4"), ("bbox", [1, 2, "3", 4]), ("bbox", [1, 2, True, 4]),
                ("bbox", None), ("id", "55"), ("id", None)],
}  # fmt: skip
"""Values of fields that no row may have; None also stands for a field that is not there."""

REFERENCES = [("ref_id", "1"), ("ann_id", "55"), ("ann_id", 99), ("image_id", "21"), ("split", None),
              ("sentences", "person"), ("sentences", [{"sent_id": "0", "sent": "x"}]),
              ("sentences", [{"sent_id": 0, "sent": None}])]  # fmt: skip
"""The same for the phrases of RefCOCO, which are pickled."""

WHOLE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "null": lambda text: "null",
    "number": lambda text: "7",
    "deep": lambda text: DEEP,
    "list of lists": lambda text: "[[]]",
    "latin-1": lambda text: text.encode() + b"\xff\xfe",
    "UTF-16": lambda text: text.encode("utf-16"),
    "nulls": lambda text: "\0" * len(text),
    "page": lambda text: "<!DOCTYPE html><html></html>",
}
"""Contents of whole files that are refused."""


def rows_of(name, content):
    """The rows of a task inside its file; changing them changes the document."""
    document = [json.loads(line) for line in content.splitlines()] if name in ("vsr", "pope") else json.loads(content)
    rows = document
    if name == "textvqa":
        rows = document["data"]
    elif name in ("vqav2", "refcoco"):
        rows = document["annotations"]
    elif name == "ai2d":
        rows = document["questions"]
    return document, list(rows.values()) if isinstance(rows, dict) else rows


def write(name, document):
    if name in ("vsr", "pope"):
        return "".join(json.dumps(row) + "\n" for row in document)
    return json.dumps(document)


def changed(name, content, field, value, row=-1):
    """The content of a file with another value in a field of one row."""
    document, rows = rows_of(name, content)
    rows[row][field] = copy.copy(value)
    return write(name, document)


def without(name, content, field, row=-1):
    document, rows = rows_of(name, content)
    del rows[row][field]
    return write(name, document)


def phrases(content, field, value):
    refs = pickle.loads(content)
    refs[0][field] = value
    return pickle.dumps(refs, protocol=2)
