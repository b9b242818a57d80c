"""Datasets, loaders and readers of files."""

from gpubackprop.data.csv import Table, read_csv
from gpubackprop.data.dataset import ArrayDataset, Dataset, Subset, split, split_indices
from gpubackprop.data.digits import load_digits
from gpubackprop.data.download import RemoteFile, RemoteSet, fetch
from gpubackprop.data.idx import read_idx, read_mnist
from gpubackprop.data.loader import DataLoader
from gpubackprop.data.npz import read_npz
from gpubackprop.data.prepare import Scaling, fit_scaling, one_hot
from gpubackprop.data.registry import DATASETS, DatasetKind, DataSplit, load
from gpubackprop.data.toy import blobs, spirals, two_moons

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "DataLoader",
    "DataSplit",
    "Dataset",
    "DatasetKind",
    "RemoteFile",
    "RemoteSet",
    "Scaling",
    "Subset",
    "Table",
    "blobs",
    "fetch",
    "fit_scaling",
    "load",
    "load_digits",
    "one_hot",
    "read_csv",
    "read_idx",
    "read_mnist",
    "read_npz",
    "spirals",
    "split",
    "split_indices",
    "two_moons",
]
