"""PyTorch files are read without PyTorch, and nothing that they say is run."""

import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from dydiff_jax.data.formats.torch_file import read_tensor

#: Written by PyTorch 2.13 from x = n + sin(n), n = 0, 1, ... in the shape of `truth`: rbc_zip and rbc_legacy
#: hold x[1:5], transposed_zip holds x[:2] with its last axes swapped; the zip files keep all of x.
FILES = pathlib.Path(__file__).parent / "files"
FORMATS = ("rbc_zip.pt", "rbc_legacy.pt")


def truth():
    n = np.arange(6 * 2 * 8 * 16, dtype=np.float32).reshape(6, 2, 8, 16)
    return n + np.sin(n)


@pytest.mark.parametrize("name", FORMATS)
def test_both_formats_are_read_to_the_last_bit_but_one(name):
    found = read_tensor(FILES / name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth()[1:5], rtol=2e-7)


def test_the_two_formats_agree_exactly():
    np.testing.assert_array_equal(*(read_tensor(FILES / name) for name in FORMATS))


def test_strides_are_followed():
    np.testing.assert_allclose(
        read_tensor(FILES / "transposed_zip.pt"), truth()[:2].swapaxes(2, 3), rtol=2e-7
    )


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_stay_on_disk(name):
    found = read_tensor(FILES / name)
    base = found
    while not isinstance(base, np.memmap):
        base = base.base  # ends in None, without a memory map
    assert not found.flags.writeable


class Command:
    """Pickles to a call of os.system."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def as_zip(path, pickled, numbers=b"\0" * 64):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", numbers)


def as_legacy(path, pickled):
    header = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in header) + pickled)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_a_pickle_that_calls_a_function_is_refused_and_nothing_is_run(tmp_path, write):
    pickled = pickle.dumps(Command(tmp_path / "ran"), 2)
    write(tmp_path / "evil.pt", pickled)
    with pytest.raises(ValueError, match=r"evil.pt.*asks for (posix|nt).system.*nothing was run"):
        read_tensor(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)  # the attack is a real one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["builtins eval", "numpy load", "torch._utils _rebuild_parameter"])
def test_every_name_that_no_tensor_needs_is_refused(tmp_path, name):
    as_zip(tmp_path / "x.pt", b"c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(ValueError, match=f"asks for {name.replace(' ', '.')}"):
        read_tensor(tmp_path / "x.pt")


def tensor_pickle(offset, shape, strides, size=16):
    """The pickle of a float tensor, written by hand."""

    def numbers(values):
        return "(" + "".join(f"I{n}\n" for n in values) + "t"

    storage = f"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI{size}\ntQ"
    view = f"I{offset}\n{numbers(shape)}{numbers(strides)}I00\nNtR."
    return f"ctorch._utils\n_rebuild_tensor_v2\n({storage}{view}".encode()


def test_a_tensor_described_by_hand_is_read(tmp_path):
    numbers = np.arange(16, dtype=np.float32)
    as_zip(tmp_path / "x.pt", tensor_pickle(2, (3, 2), (4, 1)), numbers.tobytes())
    np.testing.assert_array_equal(read_tensor(tmp_path / "x.pt"), [[2, 3], [6, 7], [10, 11]])


@pytest.mark.parametrize(
    "view",
    [
        (0, (17,), (1,)),
        (1, (16,), (1,)),
        (0, (2, 2), (1, 15)),
        (0, (2,), (10**15,)),
        (-1, (2,), (1,)),
        (8, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (0,), (1,)),
        (0, (2, 2), (1,)),
        (0, (16,), (1,), 1000),
    ],
)
def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path, view):
    as_zip(tmp_path / "x.pt", tensor_pickle(*view))
    with pytest.raises(ValueError, match=r"x.pt.*a tensor of shape"):
        read_tensor(tmp_path / "x.pt")


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_anywhere_is_refused_and_named(tmp_path, name):
    whole = (FILES / name).read_bytes()
    for length in range(0, len(whole) - 1, 97):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{name}: not a whole PyTorch file"):
            read_tensor(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_changed_bytes_give_a_named_error_or_numbers_but_nothing_else(tmp_path, name):
    whole, rng = (FILES / name).read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(700, size=2):  # where the description stands
            changed[place] = rng.integers(256)
        (tmp_path / name).write_bytes(changed)
        try:
            assert np.asarray(read_tensor(tmp_path / name)).size
        except ValueError as error:
            assert name in str(error)


def test_what_is_no_tensor_is_refused(tmp_path):
    as_zip(tmp_path / "x.pt", pickle.dumps({"a": 1}, 2))
    with pytest.raises(ValueError, match="expected one tensor, found dict"):
        read_tensor(tmp_path / "x.pt")


def test_compressed_numbers_are_refused(tmp_path):
    with (
        zipfile.ZipFile(FILES / "rbc_zip.pt") as plain,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in plain.namelist():
            compressed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match="compressed"):
        read_tensor(tmp_path / "x.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x.pt: no such file"):
        read_tensor(tmp_path / "x.pt")
