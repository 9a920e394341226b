"""Putting chat together from Settings."""

from cluster.clock import utc_now
from cluster.settings import Settings
from cluster.store import Store
from serve_apps.chat.engine import ChatEngine
from serve_apps.chat.openai_engine import OpenAIEngine
from serve_apps.chat.service import Chat
from serve_apps.chat.sources import Engines, configured
from serve_apps.chat.vllm_engine import VllmEngine
from train.models import Models


def build_engine(settings: Settings) -> Engines:
    """The engines of a chat replica. Cheap: vLLM is imported by the first load. Needs a running event loop."""
    here = VllmEngine(settings.chat_memory_mb, settings.chat_kv_mb, settings.chat_threads, settings.home)
    return Engines(here, OpenAIEngine(settings.chat_api_key))


async def build_chat(settings: Settings, store: Store, models: Models, engine: ChatEngine) -> Chat:
    """The service over an engine of this process, or over a RemoteEngine. Fetches a configured hub model."""
    return Chat(store, models, engine, utc_now, settings.chat_model, await configured(settings.chat_model))
