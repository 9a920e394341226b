import pytest
from engine_contract import Contract
from scripted_engine import ScriptedEngine

from serve_apps.chat.engine import ModelRef


class TestScriptedEngineKeepsTheContract(Contract):
    """So what the service's tests show of it holds for the real one."""

    @pytest.fixture
    def engine(self) -> ScriptedEngine:
        return ScriptedEngine()

    @pytest.fixture
    def model(self) -> ModelRef:
        return ModelRef("model_1", "scripted", "", "sha256:abc", 256)
