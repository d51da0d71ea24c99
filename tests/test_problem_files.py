"""Photographs, matrices and idx files: what goes in comes out, and what is wrong with a file is said clearly."""

import gzip

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from asyncsim.problems import ConvNetwork, MatrixFactorization, NonNegativeFactorization, Softmax
from asyncsim.problems.data import read
from asyncsim.problems.pictures import BUILT_IN, grey_values

PICTURE = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5) * 8


def refused(kind, **fields):
    with pytest.raises(ValidationError) as error:
        kind(**fields)
    return error.value.errors()[0]["msg"]


# --- photographs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_photographs_have_the_shapes_written_down(name):
    assert grey_values(name).shape == BUILT_IN[name]
    assert 0.0 <= grey_values(name).min() < 0.1 < 0.8 < grey_values(name).max() <= 1.0


def test_grey_values(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([PICTURE] * 3, axis=-1)).save(tmp_path / "colour.png")
    Image.fromarray(PICTURE.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey", "colour", "deep"):
        np.testing.assert_allclose(grey_values(str(tmp_path / f"{name}.png")), PICTURE / 255, rtol=1e-12, err_msg=name)
    red = np.zeros((2, 2, 3), dtype=np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    np.testing.assert_allclose(grey_values(str(tmp_path / "red.png")), 0.299)


def test_a_photograph_from_a_file_is_the_matrix(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "photo.png")
    problem = NonNegativeFactorization(photograph=str(tmp_path / "photo.png"), rank=5)
    assert (problem.shape, problem.dimension) == ((6, 5), 55)
    assert problem.value(np.zeros(55)) == pytest.approx(np.mean(np.square(PICTURE / 255)))
    assert "at most 5, the matrix is 6 × 5" in refused(
        NonNegativeFactorization, photograph=str(tmp_path / "photo.png"), rank=6
    )


def whole(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(64, 64), dtype=np.uint8)).save(path)


NO_PICTURES = {
    "words": (lambda path: path.write_text("no picture"), "is no picture"),
    "empty": (lambda path: path.write_bytes(b""), "is no picture"),
    "cut_off": (lambda path: (whole(path), path.write_bytes(path.read_bytes()[:1500])), "is no picture"),
    "black": (lambda path: Image.new("L", (8, 8)).save(path), "is all black"),
}


@pytest.mark.parametrize(("write", "message"), NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_is_refused(tmp_path, write, message):
    write(tmp_path / "photo.png")
    said = refused(NonNegativeFactorization, photograph=str(tmp_path / "photo.png"), rank=1)
    assert said.startswith(f"{tmp_path}/photo.png: ")
    assert message in said


# --- matrices ---------------------------------------------------------------------------------------------------------

MATRIX = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, 1e-3]])


def test_matrices_from_files(tmp_path):
    np.save(tmp_path / "matrix.npy", MATRIX)
    np.savetxt(tmp_path / "matrix.csv", MATRIX, delimiter=",", fmt="%.17g")
    for name in ("matrix.npy", "matrix.csv"):
        problem = MatrixFactorization(file=str(tmp_path / name), rank=2)
        np.testing.assert_array_equal(problem.matrix, MATRIX)
        assert problem.dimension == 10
    assert "'rank' must be at most 2" in refused(MatrixFactorization, file=str(tmp_path / "matrix.npy"), rank=3)
    assert "'data_seed' has no effect" in refused(
        MatrixFactorization, file=str(tmp_path / "matrix.npy"), rank=1, data_seed=1
    )


NO_MATRICES = {
    "nan": ("m.npy", lambda path: np.save(path, [[1.0, np.nan]]), "column 1 of row 0 (both counted from 0) is nan"),
    "inf": ("m.csv", lambda path: path.write_text("1,2\n3,inf\n"), "column 1 of row 1 (both counted from 0) is inf"),
    "ragged": ("m.csv", lambda path: path.write_text("1,2\n3\n"), "not a matrix of numbers"),
    "words": ("m.csv", lambda path: path.write_text("a,b\n"), "not a matrix of numbers"),
    "vector": ("m.npy", lambda path: np.save(path, [1.0, 2.0]), "not a matrix of numbers: shape (2,)"),
    "complex": ("m.npy", lambda path: np.save(path, [[1j]]), "not a matrix of numbers"),
    "objects": ("m.npy", lambda path: np.save(path, np.array([[None]]), allow_pickle=True), "not a matrix of numbers"),
    "text": ("m.npy", lambda path: path.write_text("1,2"), "not a matrix of numbers"),
    "empty": ("m.npy", lambda path: np.save(path, np.empty((0, 3))), "not a matrix of numbers"),
}


@pytest.mark.parametrize(("name", "write", "message"), NO_MATRICES.values(), ids=NO_MATRICES)
def test_what_is_no_matrix_is_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    assert message in refused(MatrixFactorization, file=str(tmp_path / name), rank=1)


# --- idx files --------------------------------------------------------------------------------------------------------


def idx(entries):
    head = bytes([0, 0, 8, entries.ndim]) + b"".join(length.to_bytes(4, "big") for length in entries.shape)
    return head + entries.astype(np.uint8).tobytes()


@pytest.fixture
def digits(tmp_path):
    """The digits as the MNIST data are kept: a file of pictures and a file of labels."""
    pictures, labels = read("digits")
    content = {"images-idx3": pictures.reshape(-1, 8, 8), "labels-idx1": labels}
    for name, entries in content.items():
        (tmp_path / f"train-{name}-ubyte").write_bytes(idx(entries))
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(idx(entries)))
    return tmp_path


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_the_data_that_they_were_written_from(digits, ending):
    file = str(digits / f"train-images-idx3-ubyte{ending}")
    features, targets = read(file)
    np.testing.assert_array_equal(features, read("digits")[0])
    np.testing.assert_array_equal(targets, read("digits")[1])
    for kind in (ConvNetwork, Softmax):
        ours, theirs = kind(dataset=file), kind(dataset="digits")
        x = np.linspace(-1, 1, theirs.dimension)
        assert ours.dimension == theirs.dimension
        assert ours.value(x) == pytest.approx(theirs.value(x), rel=1e-12)


def test_pictures_need_not_be_square(tmp_path):
    (tmp_path / "t-images-idx3-ubyte").write_bytes(idx(np.arange(2 * 6 * 4).reshape(2, 6, 4)))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx(np.array([0, 1])))
    assert ConvNetwork(dataset=str(tmp_path / "t-images-idx3-ubyte"), filters=1).dimension == 9 + 1 + 2 * (2 * 1) + 2


BROKEN = {
    "no_labels": (lambda folder: (folder / "train-labels-idx1-ubyte").unlink(), "its labels are missing"),
    "cut_off": (
        lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(idx(np.ones((3, 2, 2)))[:-1]),
        "is cut off: 11 entries, its head says 3 × 2 × 2",
    ),
    "another_format": (lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\r\3aaaa"), "not an idx"),
    "labels_of_pictures": (
        lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.ones((3, 2, 2)))),
        "not an idx file of bytes with 1 axis",
    ),
    "other_labels": (
        lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.ones(5))),
        "got (1797, 64) and (5,)",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_idx_files_are_refused(digits, damage, message):
    damage(digits)
    assert message in refused(ConvNetwork, dataset=str(digits / "train-images-idx3-ubyte"))


def test_a_file_that_is_not_compressed_as_it_says(digits):
    (digits / "train-images-idx3-ubyte.gz").write_bytes(b"plain")
    assert "cannot be read" in refused(ConvNetwork, dataset=str(digits / "train-images-idx3-ubyte.gz"))
