"""One package for each face of the village: its words, codes and envelope; no rule lives here."""

from serve_apps.dialects.aifarm import AIFARM
from serve_apps.dialects.ains import AINS
from serve_apps.dialects.aivillage import AIVILLAGE
from serve_apps.dialects.forge import FORGE
from serve_apps.dialects.openai import OPENAI
from serve_apps.dialects.orchestra import ORCHESTRA

DIALECTS = (AIVILLAGE, AIFARM, AINS, ORCHESTRA, FORGE, OPENAI)
