"""One model in one vLLM engine: prompt, sampling, tokens, memory. Importing this imports vLLM (seconds)."""

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
import torch
from tokenizers.decoders import DecodeStream
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from cluster.errors import Invalid, Unavailable
from cluster.hardware import native_bf16
from cluster.ids import new_id
from serve_apps.chat.engine import Delta, Finish, ModelRef, Reason, Sampling, TokenLogprob, Turn
from serve_apps.chat.history import Prompt, fit
from serve_apps.chat.residency import stream_interval
from serve_apps.chat.thoughts import Listener, marks_of

LONG_TEXT = 20_000  # characters beyond which a prompt is tokenized off the event loop
STOP_SECONDS = 5
FEW_TOKENS = 8  # fewer say nothing about speed
MB = 1024 * 1024
# For checkpoints without a chat template, such as base models.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
REASONS: dict[str | None, Reason] = {"stop": "stop", "length": "length", "repetition": "stop"}


def engine_arguments(model: ModelRef, kv_mb: int, on_cpu: bool, bf16: bool) -> dict[str, Any]:
    """vLLM's arguments: one process beside ours on a CPU, vLLM's own defaults (graphs, its executor) on a GPU."""
    shared: dict[str, Any] = {
        "model": model.path,
        "served_model_name": model.name,
        "max_model_len": -1,  # the checkpoint's own, or as much of it as the cache can hold
        "kv_cache_memory_bytes": kv_mb * MB,
        "disable_log_stats": True,
        "worker_extension_cls": "serve_apps.chat.orphan.DiesWithParent",
    }
    if not on_cpu:
        return shared
    return shared | {
        "dtype": "bfloat16" if bf16 else "float32",
        "enforce_eager": True,  # nothing to compile with: start-up in seconds
        "distributed_executor_backend": "uni",
    }


def engine_environment(on_cpu: bool, threads: int) -> dict[str, str]:
    """What the engine's process inherits.

    OpenMP gets one core less than there are: with all of them, one preempted thread stalls every step at a barrier,
    and the HTTP side of this replica preempts it all the time (2 cores: 4,000 tokens/s alone, 40 to 300 beside a load;
    with one thread 3,100 whatever else runs).
    """
    if not on_cpu:
        return {}
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(threads or max(1, len(os.sched_getaffinity(0)) - 1)),
        "TORCH_COMPILE_DISABLE": "1",  # vLLM compiles its rank counter at the first logprobs: 16 s of a request's time
    }


class VllmModel:
    """A loaded model. Not a judge of memory: `VllmEngine` decides who stays."""

    def __init__(self, llm: AsyncLLM, model: ModelRef) -> None:
        self.llm, self.model = llm, model
        self.context = int(llm.model_config.max_model_len)
        self.tokenizer: Any = llm.get_tokenizer()
        self.template = None if getattr(self.tokenizer, "chat_template", None) else PLAIN_TEMPLATE
        self.marks = marks_of(self.tokenizer)
        self.tokens_per_second = 0.0  # of one stream, as the last replies went

    @classmethod
    def start(cls, model: ModelRef, kv_mb: int, threads: int) -> "VllmModel":
        """Load it: blocks for as long as that takes. Raises what vLLM raises."""
        on_cpu = current_platform.is_cpu()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.update(engine_environment(on_cpu, threads))
        bf16 = not on_cpu or native_bf16(torch.device("cpu"))
        arguments = AsyncEngineArgs(**engine_arguments(model, kv_mb, on_cpu, bf16))
        return cls(AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER), model)

    @property
    def dead(self) -> bool:
        """Whether the engine's process is gone."""
        return self.llm.errored

    @property
    def running(self) -> int:
        """Requests that vLLM has not finished."""
        return self.llm.get_num_unfinished_requests()

    @property
    def pids(self) -> tuple[int, ...]:
        """The engine's processes."""
        return tuple(process.pid for process in self._processes() if process.pid)

    def _processes(self) -> list[BaseProcess]:
        manager: Any = self.llm.engine_core.resources.engine_manager  # type: ignore[attr-defined]  # every client has it
        return list(manager.processes) if manager else []

    def memory_mb(self) -> float:
        """What goes back to the machine when this model does: memory that only its processes hold, and the GPU's."""
        total = 0.0
        for pid in self.pids:
            try:
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                total += sum(process.memory_full_info().uss for process in family) / MB
            except psutil.NoSuchProcess:
                continue
        return total + (0.0 if current_platform.is_cpu() else _gpu_memory_mb(self.pids))

    def stop(self) -> None:
        """Unload. Blocks until the processes have ended: the next model counts on their memory."""
        processes = self._processes()
        self.llm.shutdown(timeout=STOP_SECONDS)
        for process in processes:  # vLLM kills a slow one and does not wait for that
            process.join(STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    def encode(self, messages: Sequence[Turn]) -> list[int]:
        """The prompt's token ids, by the checkpoint's chat template; a model that thinks is asked to begin with it.

        Raises `Invalid` where the template refuses.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in messages],
                chat_template=self.template, tokenize=False, add_generation_prompt=True,
            )  # fmt: skip
        except Exception as error:  # a template may raise anything, most of all jinja's own errors
            raise Invalid(f"the model's chat template refuses these messages: {error}", field="messages") from error
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_to_answer(self, messages: Sequence[Turn]) -> list[int]:
        """The prompt of a model that thinks, to be answered at once."""
        ids = self.encode(messages)
        return ids[:-1] if self.marks and ids[-1] == self.marks.think else ids

    async def prompt(self, messages: Sequence[Turn], max_tokens: int | None, thinking: bool = True) -> Prompt:
        """The part of `messages` that fits."""
        encode = self.encode if thinking else self.encode_to_answer
        if sum(len(turn.content) for turn in messages) > LONG_TEXT:
            return await asyncio.to_thread(fit, messages, encode, self.context, max_tokens)
        return fit(messages, encode, self.context, max_tokens)

    def listener(self, sampling: Sampling) -> Listener | None:
        """Tells thoughts from words in one reply; None for a model that does not think.

        Words that a schema constrains are not thought about: the grammar would hold for the thought as well.
        """
        if self.marks is None:
            return None
        stream, backend = DecodeStream(skip_special_tokens=True), self.tokenizer.backend_tokenizer
        inside = sampling.json_schema is None and not sampling.json_object
        return Listener(self.marks, lambda each: stream.step(backend, each) or "", sampling.stop, inside)

    def parameters(self, sampling: Sampling, max_tokens: int) -> SamplingParams:
        """vLLM's parameters. Raises `Invalid`."""
        structured = None
        if sampling.json_schema is not None:
            structured = StructuredOutputsParams(json=sampling.json_schema)
        elif sampling.json_object:
            structured = StructuredOutputsParams(json_object=True)
        logprobs = 0 if sampling.measure and sampling.logprobs is None else sampling.logprobs
        # A thought may have a stop string in it, so that those of a model that thinks are looked for by its listener.
        stop = list(sampling.stop) if self.marks is None else []
        stream = sampling.stream or len(stop) < len(sampling.stop)
        try:
            return SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p,
                max_tokens=max_tokens, seed=sampling.seed, stop=stop, ignore_eos=sampling.ignore_eos,
                presence_penalty=sampling.presence_penalty, frequency_penalty=sampling.frequency_penalty,
                logprobs=logprobs, structured_outputs=structured, skip_clone=True,
                output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
                stream_interval=stream_interval(self.running, self.tokens_per_second) if stream else None,
            )  # fmt: skip
        except (VLLMClientError, ValueError) as error:
            raise Invalid(str(error)) from error

    async def generate(self, messages: Sequence[Turn], sampling: Sampling) -> AsyncGenerator[Delta | Finish, None]:
        """Deltas, then a Finish. Raises `Invalid` and `Unavailable`."""
        listener = self.listener(sampling)
        prompt = await self.prompt(messages, sampling.max_tokens, listener is None or listener.inside)
        parameters = self.parameters(sampling, prompt.max_tokens)
        produced, spoken, probability, reason, cached = 0, 0, 0.0, None, 0
        clock = asyncio.get_running_loop().time
        first = 0.0
        outputs: AsyncGenerator[Any, None] = self.llm.generate(
            tokens_input(prompt.token_ids), parameters, new_id("req")
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    step = output.outputs[0]
                    first = first or clock()
                    reason, cached = step.finish_reason, output.num_cached_tokens or 0
                    text, ids, positions, ended = said(step, listener)
                    produced = produced + len(step.token_ids) if listener is None else listener.tokens
                    spoken += len(ids)
                    if positions is not None and sampling.measure:
                        probability += sum(
                            math.exp(position[token].logprob) for token, position in zip(ids, positions, strict=False)
                        )
                    if ids or text:
                        yield Delta(text, ids, logprobs_of(ids, positions, sampling))
                    if ended:
                        reason = "stop"
                        break
        except EngineDeadError as error:
            raise Unavailable("the model's engine died; the next request starts it anew", component="chat") from error
        except EngineGenerateError as error:
            raise Unavailable("the model's engine failed at this request", component="chat") from error
        except (VLLMClientError, ValueError) as error:
            raise Invalid(str(error)) from error
        if reason == "error":
            raise Unavailable("the model's engine failed at this request", component="chat")
        if (took := clock() - first) > 0 and produced > FEW_TOKENS and sampling.stream:
            self.tokens_per_second = produced / took
        yield Finish(
            reason=REASONS.get(reason, "abort"),
            prompt_tokens=len(prompt.token_ids),
            completion_tokens=produced,
            mean_probability=probability / spoken if sampling.measure and spoken else None,
            dropped_turns=prompt.dropped,
            max_tokens=prompt.max_tokens if (sampling.max_tokens or prompt.max_tokens) > prompt.max_tokens else None,
            cached_tokens=cached,
            thought_tokens=listener.thought_tokens if listener else 0,
        )


def said(step: Any, listener: Listener | None) -> tuple[str, Sequence[int], Sequence[Any] | None, bool]:
    """What a step of vLLM's adds for the reader: text, ids, their log-probabilities, and whether a stop string came."""
    if listener is None:
        return step.text, step.token_ids, step.logprobs, False
    heard = listener.hear(step.token_ids, last=step.finish_reason is not None)
    positions = None if step.logprobs is None else [step.logprobs[index] for index in heard.indexes]
    return heard.text, [step.token_ids[index] for index in heard.indexes], positions, heard.ended


def logprobs_of(
    ids: Sequence[int], positions: Sequence[Any] | None, sampling: Sampling
) -> tuple[TokenLogprob, ...] | None:
    """As ours, where they were asked for."""
    if sampling.logprobs is None or positions is None:
        return None
    return tuple(
        TokenLogprob(
            position[token].decoded_token or "",
            position[token].logprob,
            tuple(
                (other.decoded_token or "", other.logprob)
                for other in sorted(position.values(), key=lambda other: other.rank or 0)[: sampling.logprobs]
            ),
        )
        for token, position in zip(ids, positions, strict=False)
    )


def _gpu_memory_mb(pids: Sequence[int]) -> float:
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    total = 0
    for index in range(pynvml.nvmlDeviceGetCount()):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
            total += (process.usedGpuMemory or 0) if process.pid in pids else 0
    return total / MB
