"""Bytes to named tensors and text metadata, and back: the only room that opens files and reaches the Hub."""

from lorry.files._layout import Spans
from lorry.files._shards import part_paths
from lorry.files.closing import Closing
from lorry.files.finding import check_inside, find_weights
from lorry.files.folders import check_folder, write_folders
from lorry.files.hashes import HASH_KEYS, Hashes, hash_file, rehashed, weights_hash
from lorry.files.pickles import LIST_MARKER, read_pickle, write_pickle, write_torch
from lorry.files.reading import read_adapter_file, read_weights
from lorry.files.replacing import check_writable, replace_file
from lorry.files.safetensors_reader import read_header, read_safetensors
from lorry.files.safetensors_writer import size_on_disk, stream_safetensors, write_safetensors
from lorry.files.streaming import PickleReader, TensorReader
from lorry.files.tensor_file import TensorFile

__all__ = [
    "check_folder",
    "check_writable",
    "Closing",
    "HASH_KEYS",
    "Hashes",
    "LIST_MARKER",
    "PickleReader",
    "Spans",
    "TensorFile",
    "TensorReader",
    "check_inside",
    "find_weights",
    "hash_file",
    "part_paths",
    "read_adapter_file",
    "read_header",
    "read_pickle",
    "read_safetensors",
    "read_weights",
    "rehashed",
    "replace_file",
    "size_on_disk",
    "stream_safetensors",
    "weights_hash",
    "write_folders",
    "write_pickle",
    "write_safetensors",
    "write_torch",
]
