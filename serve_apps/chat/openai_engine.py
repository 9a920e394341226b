"""A ChatEngine that is somebody else's: any server that speaks OpenAI's chat completions, over httpx."""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import httpx
import orjson

from cluster.errors import Invalid, LimitExceeded, NotFound, Unavailable
from serve_apps.chat.engine import Delta, Finish, Loaded, ModelRef, Reason, Sampling, TokenLogprob, Turn
from serve_apps.chat.sources import ELSEWHERE

REASONS: dict[str, Reason] = {"stop": "stop", "length": "length"}


class OpenAIEngine:
    """`ModelRef.path` is `openai:URL#model`; without `#model` the first that the server lists.

    Token counts are the server's. Its token ids stay with it: a Delta's are empty, and a Delta is whatever the server
    sent in one event. `top_k`, `min_p` and `ignore_eos` are passed on where they are set; a server may refuse them.
    """

    def __init__(self, api_key: str = "", client: httpx.AsyncClient | None = None) -> None:
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client or httpx.AsyncClient(timeout=httpx.Timeout(60, connect=5))
        self._first: dict[str, str] = {}  # URL -> the model that its server lists first

    async def generate(
        self, model: ModelRef, messages: Sequence[Turn], sampling: Sampling
    ) -> AsyncGenerator[Delta | Finish, None]:
        """See `ChatEngine`. Closing the iterator closes the connection, which is how such a server learns of it."""
        url, _, name = model.path.removeprefix(ELSEWHERE).partition("#")
        body = request_body(name or await self._first_model(url), messages, sampling)
        reason: Reason = "abort"
        usage: dict[str, Any] = {}
        probabilities: list[float] = []
        try:
            async with self._client.stream(
                "POST", f"{url}/chat/completions", json=body, headers=self._headers
            ) as response:
                if response.is_error:
                    raise refusal(response.status_code, await response.aread())
                async for event in events(response.aiter_lines()):
                    if "error" in event:
                        raise Unavailable(str(event["error"].get("message", "the model's server failed")))
                    usage = event.get("usage") or usage
                    for choice in event.get("choices") or ():
                        logprobs = token_logprobs(choice)
                        probabilities += [math.exp(entry.logprob) for entry in logprobs or ()]
                        if text := (choice.get("delta") or {}).get("content"):
                            yield Delta(text, (), logprobs if sampling.logprobs is not None else None)
                        if finish := choice.get("finish_reason"):
                            reason = REASONS.get(finish, "stop")
        except httpx.HTTPError as error:
            raise Unavailable(f"the model's server does not answer: {error!r}", component="chat") from error
        yield Finish(
            reason,
            usage.get("prompt_tokens", 0),
            usage.get("completion_tokens", 0),
            sum(probabilities) / len(probabilities) if sampling.measure and probabilities else None,
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        )

    async def _first_model(self, url: str) -> str:
        if url not in self._first:
            try:
                response = await self._client.get(f"{url}/models", headers=self._headers)
            except httpx.HTTPError as error:
                raise Unavailable(f"the model's server does not answer: {error!r}", component="chat") from error
            if response.is_error:
                raise refusal(response.status_code, response.content)
            listed = response.json().get("data") or []
            if not listed:
                raise Unavailable("the model's server lists no model", component="chat")
            self._first[url] = listed[0]["id"]
        return self._first[url]

    def loaded(self) -> list[Loaded]:
        """Nothing of ours."""
        return []

    @property
    def progress(self) -> dict[str, float]:
        """Nothing of ours."""
        return {}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def request_body(name: str, messages: Sequence[Turn], sampling: Sampling) -> dict[str, Any]:
    """The request, with what is left at its default left out."""
    body: dict[str, Any] = {
        "model": name,
        "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional = {
        "max_tokens": sampling.max_tokens, "seed": sampling.seed, "stop": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty or None, "frequency_penalty": sampling.frequency_penalty or None,
        "top_k": sampling.top_k or None, "min_p": sampling.min_p or None, "ignore_eos": sampling.ignore_eos or None,
    }  # fmt: skip
    body |= {key: value for key, value in optional.items() if value is not None}
    if sampling.measure or sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs or 0}
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": sampling.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif sampling.json_object:
        body["response_format"] = {"type": "json_object"}
    return body


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each `data:` line up to `[DONE]`."""
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        yield orjson.loads(data)


def token_logprobs(choice: dict[str, Any]) -> tuple[TokenLogprob, ...] | None:
    """The choice's log probabilities, where it has any."""
    content = (choice.get("logprobs") or {}).get("content")
    if content is None:
        return None
    return tuple(
        TokenLogprob(
            entry["token"], entry["logprob"], tuple((t["token"], t["logprob"]) for t in entry.get("top_logprobs") or ())
        )
        for entry in content
    )


def refusal(status: int, body: bytes) -> Exception:
    """A server's error as one of ours; its message goes on to the caller."""
    try:
        message = str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = f"the model's server answered {status}"
    if status == 404:
        return NotFound(message)
    if status == 429:
        return LimitExceeded(message, retry_after_seconds=1)
    return Invalid(message) if status in (400, 413, 422) else Unavailable(message, component="chat")
