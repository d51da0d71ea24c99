"""Data files: what goes in comes out, and what is wrong with a file is said once and clearly."""

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from asyncsim.problems import LeastSquares, Logistic, Softmax
from asyncsim.problems.data import read

FEATURES = np.array([[1.0, 0.0, -2.5], [0.0, 3.25, 0.0], [1e-3, 0.0, 4.0], [0.5, -0.5, 0.0]])
LABELS = np.array([1.0, -1.0, -1.0, 1.0])


def write_csv(path, header=None, target=-1, labels=LABELS):
    lines = [] if header is None else [",".join(header)]
    for row, label in zip(FEATURES.tolist(), list(labels), strict=True):
        cells = [repr(number) for number in row]
        cells.insert(target if target >= 0 else len(cells), str(label))
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")


FORMATS = {
    "svm_from_0": ("data.svm", lambda path: dump_svmlight_file(FEATURES, LABELS, str(path), zero_based=True), None),
    "svm_from_1": (
        "data.svmlight",
        lambda path: dump_svmlight_file(FEATURES, LABELS, str(path), zero_based=False),
        None,
    ),
    "svm_comments": (
        "data.txt",
        lambda path: dump_svmlight_file(FEATURES, LABELS, str(path), query_id=[1, 1, 2, 2], comment="four samples"),
        None,
    ),
    "npz": ("data.npz", lambda path: np.savez(path, X=FEATURES, y=LABELS.astype(int)), None),
    "csv": ("data.csv", write_csv, None),
    "csv_header": ("data.csv", lambda path: write_csv(path, ["a", "b", "c", "label"]), None),
    "csv_name": ("data.csv", lambda path: write_csv(path, ["a", "label", "b", "c"], target=1), "label"),
    "csv_number": ("data.csv", lambda path: write_csv(path, target=0), 0),
}


@pytest.mark.parametrize(("name", "write", "target"), FORMATS.values(), ids=FORMATS)
def test_round_trip(tmp_path, name, write, target):
    path = tmp_path / name
    write(path)
    features, targets = read(str(path), target)
    np.testing.assert_array_equal(features, FEATURES)
    np.testing.assert_array_equal(targets, LABELS)
    assert Logistic(dataset=str(path), target=target).dimension == 4
    assert Softmax(dataset=str(path), target=target).dimension == 8
    assert LeastSquares(dataset=str(path), target=target).dimension == 3


def test_libsvm_lines_agree_with_scikit_learn(tmp_path):
    path = tmp_path / "digits.libsvm"
    expected, targets = read("digits")
    dump_svmlight_file(expected, targets, str(path), zero_based=False)
    features, labels = read(str(path))
    theirs, _ = load_svmlight_file(str(path))
    # Columns of zeros at the end leave no mark in such a file.
    np.testing.assert_array_equal(features, theirs.toarray())
    np.testing.assert_array_equal(labels, targets)


def test_a_file_is_the_same_problem_as_the_built_in_data(tmp_path):
    features, targets = read("breast_cancer")
    np.savez(tmp_path / "cancer.npz", X=features, y=targets)
    ours = Softmax(dataset=str(tmp_path / "cancer.npz"), l2=0.1)
    x = np.random.default_rng(0).normal(size=62)
    np.testing.assert_array_equal(ours.gradient(x), Softmax(dataset="breast_cancer", l2=0.1).gradient(x))


@pytest.mark.parametrize("labels", [["no", "yes", "yes", "no"], [1, 2, 2, 1], [0, 1, 1, 0], [-1, 1, 1, -1]])
def test_any_two_labels_serve(tmp_path, labels):
    write_csv(tmp_path / "data.csv", labels=labels)
    problem = Logistic(dataset=str(tmp_path / "data.csv"))
    np.testing.assert_array_equal(problem.targets, [[-1, 1, 1, -1]])


def test_a_relative_name_is_looked_up_beside_the_scenario(tmp_path):
    write_csv(tmp_path / "data.csv")
    problem = Logistic.model_validate({"dataset": "data.csv"}, context={"folder": str(tmp_path)})
    assert problem.dataset == str(tmp_path / "data.csv")


def test_features_that_are_always_zero_stay_zero(tmp_path):
    np.savez(tmp_path / "data.npz", X=[[0.0, -4.0], [0.0, 2.0]], y=[0, 1])
    problem = Softmax(dataset=str(tmp_path / "data.npz"))
    np.testing.assert_array_equal(problem.features, [[0.0, -1.0, 1.0], [0.0, 0.5, 1.0]])


def npz(**arrays):
    return lambda path: np.savez(path, **arrays)


def text(words):
    return lambda path: path.write_text(words)


BAD = {
    # name: (file, how it is written, fields, what the message says)
    "nothing": ("d.csv", text(""), {}, "is empty"),
    "only_a_header": ("d.csv", text("a,b\n"), {}, "is empty: 0 samples"),
    "only_targets": ("d.csv", text("1\n2\n"), {}, "is empty: 2 samples with 0 features"),
    "no_such_column": (
        "d.csv",
        text("a,b\n1,2\n3,1\n"),
        {"target": "c"},
        "target column 'c' not found; there is: a, b",
    ),
    "no_such_number": ("d.csv", text("1,2\n3,1\n"), {"target": 2}, "target column 2 not found"),
    "no_header": ("d.csv", text("1,2\n3,1\n"), {"target": "b"}, "no header, columns 0 … 1"),
    "word": ("d.csv", text("1,2\nx,1\n"), {}, "line 2: 'x' is no number"),
    "missing_cell": ("d.csv", text("a,b\n,2\n3,1\n"), {}, "line 2: '' is no number"),
    "missing_target": ("d.csv", text("1,2\n1,\n"), {}, "line 2 has no target"),
    "ragged": ("d.csv", text("1,2,1\n1,2\n"), {}, "line 2 has 2 columns, the first line has 3"),
    "not_finite": ("d.csv", text("1,0\nnan,1\n"), {}, "feature 0 of sample 1 (both counted from 0) is nan"),
    "target_not_finite": ("d.csv", text("1,0\n2,inf\n"), {}, "the target of sample 1 (counted from 0) is inf"),
    "one_class": ("d.csv", text("1,3\n2,3\n"), {}, "has one class only (3.0)"),
    "three_classes": ("d.csv", text("1,1\n2,2\n3,3\n"), {}, "has 3 classes, but the problem takes 2"),
    "regression": ("d.csv", text("1,0.5\n2,1.0\n"), {}, "classes must be words or whole numbers, got 0.5"),
    "bytes": ("d.csv", lambda path: path.write_bytes(b"\xff\xfe1,2\n"), {}, "cannot be read"),
    "svm_empty": ("d.svm", text("# nothing\n\n"), {}, "is empty"),
    "svm_only_targets": ("d.svm", text("1\n-1\n"), {}, "is empty: no line holds a feature"),
    "svm_word": ("d.svm", text("1 1:2\n-1 two:1\n"), {}, "line 2: expected 'target index:value …'"),
    "svm_no_colon": ("d.svm", text("1 1:2\n-1 2\n"), {}, "line 2: expected 'target index:value …'"),
    "svm_order": ("d.svm", text("1 2:1 1:1\n"), {}, "line 1: indices must increase from 0 or 1, got 1"),
    "svm_negative": ("d.svm", text("1 -1:1\n"), {}, "line 1: indices must increase from 0 or 1, got -1"),
    "svm_not_finite": ("d.svm", text("1 1:1\n-1 1:inf\n"), {}, "feature 0 of sample 1"),
    "svm_huge": ("d.svm", text("1 1:1\n-1 99999999999:1\n"), {}, "held as a dense table"),
    "svm_target": ("d.svm", text("1 1:2\n-1 2:2\n"), {"target": 0}, "'target' names a column of a csv file"),
    "npz_text": ("d.npz", text("1,2\n"), {}, "not an npz file of plain arrays"),
    "npz_empty": ("d.npz", text(""), {}, "not an npz file of plain arrays"),
    "npz_names": ("d.npz", npz(x=FEATURES, y=LABELS), {}, "needs arrays X and y; it has: x, y"),
    "npz_objects": ("d.npz", npz(X=FEATURES, y=np.array([1, "a", 2, 3], dtype=object)), {}, "not an npz file of plain"),
    "npz_complex": ("d.npz", npz(X=FEATURES * 1j, y=LABELS), {}, "X must hold real numbers"),
    "npz_lengths": ("d.npz", npz(X=FEATURES, y=LABELS[:3]), {}, "got (4, 3) and (3,)"),
    "npz_flat": ("d.npz", npz(X=FEATURES[0], y=LABELS[:3]), {}, "got (3,) and (3,)"),
    "npz_no_samples": ("d.npz", npz(X=np.empty((0, 3)), y=[]), {}, "is empty: 0 samples with 3 features"),
    "npz_not_finite": ("d.npz", npz(X=np.full((4, 3), np.inf), y=LABELS), {}, "feature 0 of sample 0"),
}


@pytest.mark.parametrize(("name", "write", "fields", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_refused(tmp_path, name, write, fields, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(ValidationError) as error:
        Logistic(dataset=str(path), **fields)
    assert error.value.error_count() == 1
    assert error.value.errors()[0]["type"] == "refused"
    assert message in error.value.errors()[0]["msg"]
    assert name in error.value.errors()[0]["msg"]


def test_words_are_no_targets_of_a_regression(tmp_path):
    write_csv(tmp_path / "d.csv", labels=["no", "yes", "yes", "no"])
    with pytest.raises(ValidationError, match="the targets of a regression must be numbers"):
        LeastSquares(dataset=str(tmp_path / "d.csv"))
