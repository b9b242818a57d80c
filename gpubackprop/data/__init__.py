"""Datasets, loaders and readers of files."""

from gpubackprop.data.augment import Augment
from gpubackprop.data.cifar import read_cifar10
from gpubackprop.data.csv import Table, read_csv
from gpubackprop.data.dataset import ArrayDataset, Dataset, Subset, split, split_indices
from gpubackprop.data.digits import load_digits
from gpubackprop.data.download import RemoteFile, RemoteSet, fetch
from gpubackprop.data.idx import read_idx, read_mnist
from gpubackprop.data.loader import DataLoader
from gpubackprop.data.npz import read_npz
from gpubackprop.data.pictures import Pictures, read_picture
from gpubackprop.data.prepare import Scaling, fit_scaling, one_hot
from gpubackprop.data.registry import DATASETS, DatasetKind, DataSplit, load
from gpubackprop.data.text import Vocabulary, read_text
from gpubackprop.data.toy import blobs, spirals, two_moons

TensorDataset = ArrayDataset
"""PyTorch's name for a dataset of arrays in memory."""

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Augment",
    "DataLoader",
    "DataSplit",
    "Dataset",
    "DatasetKind",
    "Pictures",
    "RemoteFile",
    "RemoteSet",
    "Scaling",
    "Subset",
    "Table",
    "TensorDataset",
    "Vocabulary",
    "blobs",
    "fetch",
    "fit_scaling",
    "load",
    "load_digits",
    "one_hot",
    "read_cifar10",
    "read_csv",
    "read_idx",
    "read_mnist",
    "read_npz",
    "read_picture",
    "read_text",
    "spirals",
    "split",
    "split_indices",
    "two_moons",
]
