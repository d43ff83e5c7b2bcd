"""Folders of results as they are after full disks, kills, copies and editors."""

import json

LINES = {
    "torn": lambda line: line[: len(line) // 2] + b"\n",
    "blank": lambda line: b"\n",
    "spaces": lambda line: b"   \n",
    "nulls": lambda line: bytes(len(line) - 1) + b"\n",
    "half nulls": lambda line: line[:20] + bytes(len(line) - 21) + b"\n",
    "other JSON": lambda line: b'{"answer": "red"}\n',
    "a number": lambda line: b"7\n",
    "not UTF-8": lambda line: line[:-20] + b"\xff\xfe" + line[-18:],
    "another question": lambda line: json.dumps(json.loads(line) | {"question": 999}).encode() + b"\n",
    "a text for a score": lambda line: json.dumps(json.loads(line) | {"score": "1"}).encode() + b"\n",
    "deep": lambda line: b"[" * 20000 + b"\n",
    "two in one": lambda line: line[:-1],
}
"""What became of a line."""

NOTES = {
    "empty": b"",
    "torn": b'{"chunk": 40,',
    "nulls": bytes(64),
    "a list": b"[1]",
    "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 20000,
}
"""What became of a file with notes, such as key.json."""


def break_line(path, kind, number):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = LINES[kind](lines[number])
    path.write_bytes(b"".join(lines))
