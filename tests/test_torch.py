"""PyTorch modules as problems: the same numbers as the networks in numpy, started by address."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

import asyncsim
from asyncsim.experiment import make_trace
from asyncsim.problems import AnyProblem, Autoencoder, ConvNetwork, TanhNetwork
from asyncsim.replay import replay
from asyncsim.sweep import cells
from asyncsim.trace import Row

SEED = 7
EXAMPLES = Path(__file__).parent.parent / "scenarios" / "with_torch"
adapter = TypeAdapter(AnyProblem)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")


def build(name, **fields):
    entry = {"kind": "torch", "module": f"torch_modules:{name}", "device": "cpu", **fields}
    return adapter.validate_python(entry, context={"folder": str(Path(__file__).parent)})


@pytest.fixture
def pair():
    """The tanh network in PyTorch and in numpy."""
    return build("Tanh", arguments={"hidden": 4}, batch=6), TanhNetwork(hidden=4, batch=6)


@needs_torch
def test_the_numbers_are_those_of_the_network_in_numpy(pair):
    ours, numpy = pair
    assert ours.dimension == numpy.dimension
    x, vector = np.random.default_rng(0).normal(size=(2, ours.dimension))
    row = Row(SEED, 1, 2, 3)
    assert ours.value(x) == pytest.approx(numpy.value(x), rel=1e-12)
    assert ours.accuracy(x) == numpy.accuracy(x)
    np.testing.assert_allclose(ours.gradient(x), numpy.gradient(x), atol=1e-14)
    np.testing.assert_allclose(ours.stochastic_gradient(x, row), numpy.stochastic_gradient(x, row), atol=1e-14)
    for block in (slice(3, 9), slice(250, 270), slice(275, None)):  # of the first layer, of both, of the last
        np.testing.assert_allclose(ours.block_gradient(x, block), numpy.gradient(x)[block], atol=1e-14)
        assert ours.block_value_and_gradient(x, block)[0] == ours.value(x)
    np.testing.assert_allclose(ours.hessian_vector(x, vector), numpy.hessian_vector(x, vector), atol=1e-12)
    assert np.abs(ours.hessian_vector(x, vector)).max() > 1e-3


@needs_torch
def test_pictures_and_the_convolution():
    """Channels come first in PyTorch, and last in numpy."""
    ours, numpy = build("Convolution", arguments={"filters": 2}, shape=[1, 8, 8]), ConvNetwork(filters=2)
    x = np.random.default_rng(0).normal(size=ours.dimension)
    filters, bias, dense, dense_bias = numpy.parts(x)
    dense = dense.reshape(10, 2, 9).swapaxes(1, 2)
    same = np.concatenate([part.ravel() for part in (filters, bias, dense, dense_bias)])
    assert ours.value(x) == pytest.approx(numpy.value(same), rel=1e-12)
    assert ours.accuracy(x) == numpy.accuracy(same)


@needs_torch
def test_mean_squared_error():
    problem = build("Tanh", loss="mse")
    x = np.zeros(problem.dimension)
    assert problem.value(x) == pytest.approx(0.1)  # one entry in ten of a unit vector is 1
    slope = (problem.value(x + 1e-6) - problem.value(x - 1e-6)) / 2e-6
    assert problem.gradient(x).sum() == pytest.approx(slope, rel=1e-6)


@needs_torch
def test_reconstruction_is_that_of_the_autoencoder_in_numpy():
    ours, numpy = build("Bottleneck", loss="reconstruction", batch=6), Autoencoder(hidden=[3], batch=6)
    assert ours.dimension == numpy.dimension
    x, vector = np.random.default_rng(0).normal(size=(2, ours.dimension))
    row = Row(SEED, 1, 2, 3)
    assert ours.value(x) == pytest.approx(numpy.value(x), rel=1e-12)
    np.testing.assert_allclose(ours.gradient(x), numpy.gradient(x), atol=1e-14)
    np.testing.assert_allclose(ours.stochastic_gradient(x, row), numpy.stochastic_gradient(x, row), atol=1e-14)
    np.testing.assert_allclose(ours.hessian_vector(x, vector), numpy.hessian_vector(x, vector), atol=1e-12)
    with pytest.raises(NotImplementedError):
        ours.accuracy(x)


@needs_torch
@pytest.mark.parametrize(("side", "parameters"), [(8, 26_049), (28, 210_369)])
def test_the_convolutional_autoencoder_returns_pictures_of_the_size_that_it_is_given(monkeypatch, side, parameters):
    """From side² pixels to 64 numbers and back; 28 gives the network of the paper, 9 · 16 + 16, … parameters."""
    import torch

    monkeypatch.syspath_prepend(str(EXAMPLES))
    from conv_autoencoder import autoencoder

    module = autoencoder(side=side)
    pictures = torch.zeros((2, 1, side, side))
    assert module(pictures).shape == pictures.shape
    assert module[:6](pictures).shape == (2, 64, 1, 1)
    assert sum(each.numel() for each in module.parameters()) == parameters


@needs_torch
def test_the_example_runs():
    short = {"run.updates": 3, "run.replicas": 1, "metrics.every": 3, "problem.device": "cpu"}
    noisy = cells(asyncsim.load(EXAMPLES / "conv_autoencoder.toml", overrides=short))[1].scenario
    run = asyncsim.run(noisy)
    assert noisy.method.noise == 0.01
    assert set(run.metrics["metric"]) == {"loss", "grad_norm"}
    assert np.isfinite(run.metrics["value"]).all()


@needs_torch
def test_the_classifier_is_the_convolutional_network_in_numpy(monkeypatch):
    """Weights of the dense layer are in another order; 28 × 28 pixels make the 29 330 parameters of the report's."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from classifier import classifier

    assert sum(each.numel() for each in classifier().parameters()) == 29_330
    example = asyncsim.load(EXAMPLES / "seacd_classifier.toml", overrides={"problem.device": "cpu"})
    ours, numpy = example.problem, ConvNetwork(filters=20, kernel=5)
    x = np.random.default_rng(0).normal(size=ours.dimension)
    filters, bias, dense, dense_bias = np.split(x, np.cumsum([20 * 25, 20, 10 * 20 * 4]))
    dense = dense.reshape(10, 20, 4).swapaxes(1, 2).ravel()
    assert ours.value(x) == pytest.approx(numpy.value(np.concatenate([filters, bias, dense, dense_bias])), rel=1e-12)


@needs_torch
def test_seacd_trains_the_classifier():
    """As the scenario has it, but for a tenth of its updates; the loss at the start is near log(10)."""
    short = {"run.updates": 100, "metrics.every": 100, "problem.device": "cpu"}
    seacd = cells(asyncsim.load(EXAMPLES / "seacd_classifier.toml", overrides=short))[1].scenario
    run = replay(make_trace(seacd), seacd.method, seacd.problem, metrics=seacd.metrics)
    table = run.metrics.pivot(index="update", columns="metric", values="value")
    assert table["loss"][0] == pytest.approx(np.log(10.0), abs=0.1)
    assert table["loss"][100] < 1.0
    assert table["accuracy"][0] < 0.3 < 0.6 < table["accuracy"][100]


@needs_torch
def test_starts_by_address_and_leaves_the_generators_alone(pair, monkeypatch):
    import torch

    problem = pair[0]
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)  # `torch.manual_seed` seeds those of GPUs too
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's generator was seeded"))
    together = problem.initial(SEED, [0, 5])
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(problem.initial(SEED, 5), together[1])
    assert not np.array_equal(*together)
    assert 0.1 / 8 < together[:, : 4 * 64].std() < 1 / 8  # PyTorch's own law, uniform on ±1/√64


@needs_torch
def test_written_down_and_sent_to_another_process(pair):
    problem = pair[0]
    again = build("Tanh", arguments={"hidden": 4}, batch=6)
    assert adapter.dump_python(problem, mode="json") == adapter.dump_python(again, mode="json")
    x = problem.initial(SEED, 0)
    problem.gradient(x)
    sent, known = pickle.loads(pickle.dumps((problem, vars(problem))))
    vars(sent).update(known)
    np.testing.assert_array_equal(sent.gradient(x), problem.gradient(x))


MISTAKES = {
    "no_path": ("", {"module": "torch_modules"}, "must be given as package.module:Object"),
    "no_object": ("Nothing", {}, "cannot load 'torch_modules:Nothing'"),
    "no_argument": ("Tanh", {"arguments": {"hiden": 3}}, "unexpected keyword argument 'hiden'"),
    "no_module": ("not_a_module", {}, "is to return a torch.nn.Module, got int"),
    "no_parameters": ("no_parameters", {}, "has no parameters"),
    "other_features": ("Tanh", {"dataset": "breast_cancer"}, "fails on a sample of shape (1, 30)"),
    "shape": ("Convolution", {"shape": [1, 7, 8]}, "has 56 entries, a sample has 64 features"),
    "device": ("Tanh", {"device": "abacus"}, "'device' 'abacus' cannot be used"),
    "no_numbers": ("Tanh", {"device": "meta"}, "'device' 'meta' cannot be used"),
    "loss": ("Tanh", {"loss": "hinge"}, "'cross_entropy', 'mse' or 'reconstruction'"),
    "no_reconstruction": ("Tanh", {"loss": "reconstruction"}, "must return what it is given, of shape (1, 64), got"),
    "no_scores": ("Bottleneck", {}, "must return one score per class, shape (1, 10), got (1, 64)"),
}


@needs_torch
@pytest.mark.parametrize(("name", "fields", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(name, fields, message):
    with pytest.raises(ValidationError) as error:
        build(name, **fields)
    assert message in error.value.errors()[0]["msg"]


def test_without_pytorch_one_sentence_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(ValidationError) as error:
        adapter.validate_python({"kind": "torch", "module": "own:Net"})
    assert error.value.errors()[0]["msg"] == "kind = 'torch' needs PyTorch: pip install 'asyncsim[torch]'"
