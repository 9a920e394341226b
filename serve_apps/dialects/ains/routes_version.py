"""AINS, the version of its interface."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from fastapi import APIRouter
from pydantic import BaseModel

from serve_apps.kit.auth import SignedIn
from serve_apps.kit.openapi import VERSION

router = APIRouter(prefix="/ains")


def _build() -> str:
    try:
        return installed("aivillage")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return VERSION


BUILD = _build()


class VersionAnswer(BaseModel):
    """`build` is the platform's own version."""

    version: str
    api_version: str
    build: str
    status: str
    deprecations: list[str]


@router.get("/version")
async def version(who: SignedIn) -> VersionAnswer:
    """Which interface this is."""
    return VersionAnswer(version=VERSION, api_version="v1", build=BUILD, status="stable", deprecations=[])
