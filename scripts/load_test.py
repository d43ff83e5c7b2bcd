"""Put a server of the embedded model under load and faults, and write what happened to a JSON file.

Many clients send good and bad requests at the same time: pictures of several sizes, several pictures, text alone,
damaged pictures, wrong methods, and connections that are closed in the middle. Every good answer is compared with the
answer to the same request alone, every bad one has to get a status from 400 to 499, and memory has to stay. At the end
the process of the engine is killed, and the server is started again. The server listens on this machine only.

    python scripts/load_test.py --engine vllm --out results/serving/load-vllm.json
"""

import argparse
import base64
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from feathervlm.embedded.tasks import sample
from feathervlm.utils.provenance import provenance

METHODS = {
    "vllm": ["divprune:keep=0.25", "uniform:layer=0", "fastervlm:keep=0.25", "none",
             "before-llm:method=(feather:layers=4+9,fixed=true)"],
    "transformers": ["divprune:keep=0.25", "uniform:layer=0", "fastervlm:keep=0.25", "none", "feather:layers=4+9"],
}  # fmt: skip
WRONG = ["feather:layers=4+99", "nonsense", "divprune:keep=0", "tome:keep=2"]
OPTIONS = [
    "--enforce-eager",
    "--max-model-len",
    "1024",
    "--max-num-seqs",
    "16",
    "--limit-mm-per-prompt",
    '{"image": 2}',
]
SHARES = {
    "picture": 60, "resized": 10, "two pictures": 8, "text": 6, "bad base64": 3, "not a picture": 3, "truncated": 3,
    "wrong method": 3, "hangs up": 3, "50 megapixels": 1,
}  # fmt: skip
BAD = ("bad base64", "not a picture", "truncated", "wrong method")


class Server:
    """A server in processes of its own."""

    def __init__(self, engine: str, log: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        command = [sys.executable, "-m", "feathervlm", "serve", "--engine", engine, "--method", METHODS[engine][0]]
        command += ["--per-request", "--port", str(self.port), "--dtype", "float32"]
        command += ["--", *OPTIONS] if engine == "vllm" else []
        began = time.monotonic()
        with log.open("a") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() - began > 600:
                self.stop()
                sys.exit(f"The server did not start; see {log}.")
            time.sleep(0.5)
        self.started_after = time.monotonic() - began

    def healthy(self) -> bool:
        """Return whether the server says that it is."""
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).read()
        except OSError:
            return False
        return True

    def post(self, body: dict[str, Any], timeout: float = 300) -> tuple[int, Any]:
        """Return the status and the document of a response; status 0 if the connection breaks."""
        address, kind = f"http://127.0.0.1:{self.port}/v1/chat/completions", {"Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps(body).encode(), kind)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")
        except (OSError, ValueError) as error:
            return 0, repr(error)

    def hang_up(self, body: dict[str, Any], whole: bool) -> None:
        """Send a request, or half of it, and close the connection."""
        content = json.dumps({**body, "stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(
                f"{head}{len(content)}\r\n\r\n".encode() + content[: None if whole else len(content) // 2]
            )
            if whole:
                connection.recv(100)

    def processes(self) -> list[int]:
        """Return the ids of all processes of the server."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    group = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[3])
                except OSError:
                    continue
                if group == self.process.pid:
                    found.append(int(entry.name))
        return found

    def megabytes(self) -> float:
        """Return the memory of all processes of the server, shared pages counted once."""
        total = 0
        for pid in self.processes():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024

    def kill_engine(self) -> int:
        """Kill the process that runs the model, and return its id."""
        named = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.processes()}
        pid = next((pid for pid, name in named.items() if b"EngineCore" in name), self.process.pid)
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self) -> None:
        """End all processes of the server."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                os.kill(pid, number)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                continue


def url(picture: Image.Image, kind: str = "PNG") -> str:
    """Return a picture as an address that holds its data."""
    stream = io.BytesIO()
    picture.save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def chat(text: str, urls: list[str], method: str | None) -> dict[str, Any]:
    """Return the body of a request."""
    content = [*({"type": "image_url", "image_url": {"url": one}} for one in urls), {"type": "text", "text": text}]
    body: dict[str, Any] = {"model": "embedded", "messages": [{"role": "user", "content": content}]}
    body |= {"max_tokens": 5, "temperature": 0}
    return body if method is None else {**body, "mm_processor_kwargs": {"feathervlm": method}}


def make_request(kind: str, engine: str, draw: random.Random) -> dict[str, Any]:
    """Return a request of a kind; of every kind there are few different ones."""
    number = draw.randrange(8)
    (scene, question), method = sample("locate", 11, number), draw.choice(METHODS[engine])
    image, text = scene.image, question.text
    if kind == "text":
        return chat("how many circles are there ?", [], None)
    if kind == "resized":
        return chat(text, [url(image.resize(draw.choice([(64, 64), (300, 200), (200, 600), (1024, 1024)])))], method)
    if kind == "two pictures":
        other = sample("locate", 11, number + 8)[0].image
        return chat(text, [url(image), url(other)], draw.choice(METHODS[engine][:4]))
    if kind == "bad base64":
        return chat(text, ["data:image/png;base64,@@@@"], method)
    if kind == "not a picture":
        return chat(text, ["data:image/png;base64," + base64.b64encode(b"hello" * 20).decode()], method)
    if kind == "truncated":
        return chat(text, [url(image.resize((512, 512)), "JPEG")[: 4000 + 4 * number]], method)
    if kind == "wrong method":
        return chat(text, [url(image)], draw.choice(WRONG))
    if kind == "50 megapixels":
        return chat(text, [url(image.resize((8000, 6250), Image.Resampling.NEAREST))], METHODS[engine][0])
    return chat(text, [url(image)], method)


def answer_of(reply: Any) -> str | None:
    """Return the text of a reply; None if it has none."""
    return reply["choices"][0]["message"]["content"] if isinstance(reply, dict) and "choices" in reply else None


def run(server: Server, engine: str, clients: int, count: int) -> dict[str, Any]:
    """Send the requests, and return what happened."""
    draw = random.Random(0)
    kinds = draw.choices(list(SHARES), list(SHARES.values()), k=count)
    requests = [(kind, make_request(kind, engine, draw)) for kind in kinds]
    alone = {json.dumps(body): server.post(body) for kind, body in requests if kind not in BAD and kind != "hangs up"}
    done, megabytes, seconds, wrong = threading.Lock(), {}, [], []
    finished = 0

    def send(request: tuple[str, dict[str, Any]]) -> tuple[str, int]:
        nonlocal finished
        kind, body = request
        began = time.monotonic()
        if kind == "hangs up":
            server.hang_up({**body, "max_tokens": 200}, whole=len(json.dumps(body)) % 2 == 0)
            status, reply = -1, None
        else:
            status, reply = server.post(body)
        took = time.monotonic() - began
        with done:
            finished += 1
            if finished == 100:
                megabytes["after 100 requests"] = server.megabytes()
            if status == 200:
                seconds.append(took)
            expected = alone.get(json.dumps(body))
            if kind in BAD:
                fine = 400 <= status < 500
            else:
                fine = kind == "hangs up" or (status, answer_of(reply)) == (expected[0], answer_of(expected[1]))
            if not fine:
                wrong.append({"kind": kind, "status": status, "reply": str(reply)[:300]})
        return kind, status

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        outcomes = list(pool.map(send, requests))
    wall = time.monotonic() - began
    time.sleep(2)
    megabytes["at the end"] = server.megabytes()
    table = Counter(outcomes)
    alone_statuses = Counter(status for status, _ in alone.values())
    return {
        "clients": clients,
        "requests": count,
        "seconds": wall,
        "requests_per_second": count / wall,
        "seconds_of_good_answers": {
            "median": statistics.median(seconds), "95 %": statistics.quantiles(seconds, n=20)[-1]
        },
        "outcomes": [{"kind": kind, "status": status, "count": n} for (kind, status), n in sorted(table.items())],
        "statuses_alone": dict(alone_statuses),
        "wrong": wrong,
        "megabytes": megabytes,
        "healthy_afterwards": server.healthy(),
    }  # fmt: skip


def fault(server: Server, engine: str, log: Path) -> dict[str, Any]:
    """Kill the process of the engine while it answers, and start the server again."""
    body = {**make_request("picture", engine, random.Random(1)), "max_tokens": 400, "min_tokens": 400}
    if engine == "transformers":
        del body["min_tokens"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.post, body)
        time.sleep(0.3)
        server.kill_engine()
        began = time.monotonic()
        status, reply = waiting.result()
    answered = time.monotonic() - began
    after, later = server.post(body, timeout=30)
    try:
        code: int | None = server.process.wait(60)
    except subprocess.TimeoutExpired:
        code = None
    ended = time.monotonic() - began
    server.stop()
    again = Server(engine, log)
    reply_again = again.post(make_request("picture", engine, random.Random(1)))[0]
    again.stop()
    return {
        "request_in_flight": {"status": status, "reply": str(reply)[:200], "seconds": answered},
        "next_request": {"status": after, "reply": str(later)[:200]},
        "exit_code_of_the_server": code,
        "seconds_until_it_ended": ended,
        "seconds_until_started_again": again.started_after,
        "status_then": reply_again,
    }


def main() -> None:
    """Run the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=list(METHODS), default="vllm")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    log = Path(f"{options.out}.log")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    server = Server(options.engine, log)
    try:
        result = {"engine": options.engine, "started_after_seconds": server.started_after}
        result |= run(server, options.engine, options.clients, options.requests)
        result["engine_killed"] = fault(server, options.engine, log)
    finally:
        server.stop()
    memory = result["megabytes"]
    grown = memory["at the end"] / memory["after 100 requests"] - 1
    result["memory_grown_by"] = grown
    result |= provenance()
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    log.unlink()
    print(json.dumps({key: result[key] for key in ("requests_per_second", "wrong", "memory_grown_by")}, indent=1))
    if result["wrong"] or grown > 0.05 or not result["healthy_afterwards"]:
        sys.exit("The server failed the test; see the file.")


if __name__ == "__main__":
    main()
