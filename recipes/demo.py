"""The whole path in a few minutes: train from scratch, then serve the bundled model over HTTP.

    python -m recipes.demo        # or: make demo

1. Trains a small model on the Python sources of this machine and shows the loss falling.
2. Starts the server on a free loopback port with the bundled model.
3. Sends it concurrent streaming requests through the official openai client, most of them with
   a shared prefix, and prints the completions and what the server says of itself.
"""

import argparse
import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

try:
    import openai
except ModuleNotFoundError as error:
    error.add_note("recipes.demo asks its server as a client would: pip install openai")
    raise

from recipes.train import demo, train

OUT = Path("out/demo")
SERVE = ("recipes.serve",)

PREAMBLE = "You answer questions about the Python standard library in one sentence."
NAMES = (
    *("json.dumps", "math.sqrt", "random.shuffle", "os.path.join", "shutil.copyfile"),
    *("textwrap.dedent", "itertools.chain", "str.upper", "os.getcwd", "functools.reduce"),
    *("sorted", "dict.get", "list.append", "str.split", "time.sleep", "abs"),
)
CODE = (
    "import os\nimport sys\n\n\ndef main(",
    "class Stack:\n    def __init__(self",
    "def read_config(path):\n    with open(path",
    "    def test_empty(self):\n",
)
NUM_SEEDS = 8
"""Continuations of each piece of code, all at once; the first of each is printed."""


def main(arguments: list[str] | None = None) -> int:
    parse(arguments)
    start = time.monotonic()
    title("1. train from scratch")
    shutil.rmtree(OUT, ignore_errors=True)
    result = train(demo(), out=OUT, on_log=lambda entry: print(entry.line()), on_note=print)
    losses = [entry.loss for entry in result.entries]
    print(f"loss  {sparkline(losses)}  {losses[0]:.2f} -> {losses[-1]:.2f}; plot: {result.plot}")

    title("2. serve the bundled model")
    with server() as url:
        title("3. concurrent streaming requests through the openai client")
        asyncio.run(drive(url))
    print(f"\ndone in {time.monotonic() - start:.0f} s")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """There are no options; ``--help`` tells what the demo does."""
    parser = argparse.ArgumentParser(
        "python -m recipes.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.parse_args(arguments)


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run ``python -m recipes.serve`` until the block ends; yields its URL once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", *SERVE, "--port", str(port)])
    try:
        wait_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_ready(url: str, process: subprocess.Popen[bytes], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}; see its output")
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(f"{url}/ready", timeout=1)
            return
        time.sleep(0.1)
    raise TimeoutError(f"the server was not ready within {timeout:.0f} s")


def sparkline(values: list[float], width: int = 40) -> str:
    """Values as a row of bars, the highest full."""
    step = max(1, len(values) // width)
    picked = values[::step]
    low, high = min(picked), max(picked)
    scale = 7 / (high - low) if high > low else 0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in picked)


async def drive(url: str) -> None:
    """All requests at once; prints answers, one continuation of each code, then the totals."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    model = (await client.models.list()).data[0].id
    samples: list[dict[str, float]] = []
    watcher = asyncio.create_task(watch(url, samples))
    start = time.monotonic()
    answers, continuations = await asyncio.gather(
        asyncio.gather(*(chat(client, model, f"What does {name} do?") for name in NAMES)),
        asyncio.gather(
            *(complete(client, model, code, seed) for seed in range(NUM_SEEDS) for code in CODE)
        ),
    )
    seconds = time.monotonic() - start
    watcher.cancel()
    for question, text, _ in answers:
        print(f"{question}  {text}")
    for _, text, _ in continuations[: len(CODE)]:
        print(f"---\n{text.rstrip()}")
    done = [*answers, *continuations]
    tokens = sum(count for _, _, count in done)
    print(
        f"---\n{len(done)} requests, {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f}/s"
    )
    report(samples, scrape(url))


async def chat(client: openai.AsyncOpenAI, model: str, question: str) -> tuple[str, str, int]:
    """Ask one question with the shared preamble; returns prompt, text and number of tokens."""
    stream = await client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": PREAMBLE},
            {"role": "user", "content": question},
        ],
        max_tokens=64,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, tokens = "", 0
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    return question, text, tokens


async def complete(
    client: openai.AsyncOpenAI, model: str, prompt: str, seed: int
) -> tuple[str, str, int]:
    """Continue one piece of code; returns prompt, text and number of tokens."""
    stream = await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=96,
        temperature=0.6,
        seed=seed,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, tokens = "", 0
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].text
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    return prompt, prompt + text, tokens


async def watch(url: str, samples: list[dict[str, float]]) -> None:
    """Read the server's metrics, several times a second, until cancelled."""
    while True:
        samples.append(await asyncio.to_thread(scrape, url))
        await asyncio.sleep(0.05)


def scrape(url: str) -> dict[str, float]:
    """The server's gauges and counters by name."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def report(samples: list[dict[str, float]], last: dict[str, float]) -> None:
    """KV use and waste at the busiest moment, and the prefix hit rate of the whole run."""
    busiest = max(samples, key=lambda sample: sample["blocks_kv_cache_usage_perc"])
    hits, asked = last["blocks_prefix_cache_hits_total"], last["blocks_prefix_cache_queries_total"]
    print(
        f"KV cache at the busiest moment: {busiest['blocks_num_requests_running']:.0f} running, "
        f"{busiest['blocks_kv_cache_usage_perc']:.1%} of blocks in use, "
        f"{busiest['blocks_kv_cache_waste_perc']:.1%} of their slots empty"
    )
    print(f"prefix cache: {hits:.0f} of {asked:.0f} prompt tokens found ({hits / asked:.0%})")


if __name__ == "__main__":
    sys.exit(main())
