"""Published data sets: where they are, and the checksums by which their files are known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """One file of a published set.

    Parameters
    ----------
    name : str
        Name of the file, also on the server.
    sha256 : str
        The checksum in hexadecimal.
    unpacked : bool
        Whether ``sha256`` is of the decompressed content, so that any gzip packing of the same
        content passes, and not of the file as it is.
    max_bytes : int
        The most bytes that the file may have, before and after unpacking.
    """

    name: str
    sha256: str
    unpacked: bool
    max_bytes: int


@dataclass(frozen=True)
class RemoteSet:
    """A published set: its files and the places that offer them.

    Parameters
    ----------
    name : str
        Name of the set; also of its folder in the cache.
    mirrors : tuple of str
        Addresses of folders, tried in order.
    files : tuple of RemoteFile
        The files.
    """

    name: str
    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]


def _files(unpacked: bool, checksums: dict[str, str]) -> tuple[RemoteFile, ...]:
    return tuple(
        # The largest, the training images, has 47,040,016 bytes unpacked.
        RemoteFile(f"{name}.gz", checksum, unpacked, 1 << 26)
        for name, checksum in checksums.items()
    )


# MNIST: checksums of the published files, decompressed, because mirrors pack them differently.
# Fashion-MNIST: checksums of the published .gz files, as torchvision states them
# (pytorch/vision, torchvision/prototype/datasets/_builtin/mnist.py); addresses from the README of
# zalandoresearch/fashion-mnist, which also keeps the files in its repository.
REMOTE_SETS = {
    remote.name: remote
    for remote in (
        RemoteSet(
            "mnist",
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist",
                "https://storage.googleapis.com/cvdf-datasets/mnist",
            ),
            _files(
                True,
                {
                    "train-images-idx3-ubyte": (
                        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
                    ),
                    "train-labels-idx1-ubyte": (
                        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
                    ),
                    "t10k-images-idx3-ubyte": (
                        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
                    ),
                    "t10k-labels-idx1-ubyte": (
                        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
                    ),
                },
            ),
        ),
        RemoteSet(
            "fashion-mnist",
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            ),
            _files(
                False,
                {
                    "train-images-idx3-ubyte": (
                        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
                    ),
                    "train-labels-idx1-ubyte": (
                        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
                    ),
                    "t10k-images-idx3-ubyte": (
                        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
                    ),
                    "t10k-labels-idx1-ubyte": (
                        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
                    ),
                },
            ),
        ),
        # The home page, https://www.cs.toronto.edu/~kriz/cifar.html, gives the MD5 of this archive,
        # c32a1d4ab5d03f1284b67883e8d87530; this is the SHA-256 that goes with it.
        RemoteSet(
            "cifar10",
            ("https://www.cs.toronto.edu/~kriz",),
            (
                RemoteFile(
                    "cifar-10-binary.tar.gz",
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                    False,
                    1 << 28,
                ),
            ),
        ),
        # The file that A. Karpathy's char-rnn and nanoGPT train on, from the char-rnn repository.
        RemoteSet(
            "tinyshakespeare",
            ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare",),
            (
                RemoteFile(
                    "input.txt",
                    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                    False,
                    1 << 22,
                ),
            ),
        ),
    )
}
"""The sets that ``fetch`` knows by name."""
