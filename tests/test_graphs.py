"""Recording work: what is run again must be what would have run, whatever the work does.

A stand-in for CUDA's graphs runs recorded work anew on the tensors that it was recorded with, and
so tests what surrounds it on the CPU; ``test_cuda.py`` records in earnest.
"""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch

from captum_mi import InfoBottleneckAttribution
from captum_mi.fitting import fit_networks
from captum_mi.model import graphs
from captum_mi.model.graphs import Recorder

NOTHING = torch.nn.Module()  # that work reads beside its tensors


class StandIn(graphs._Record):
    """Counts replays; ``failing`` raises as capture does for work that cannot be captured."""

    replays = 0
    failing = False

    def record(self, owner, work, tensors):
        if self.failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.read = tuple(x.clone() for x in tensors)
        self.results = work(*self.read)
        self.work, self.graph = work, object()

    def replay(self, tensors):
        type(self).replays += 1
        for own, given in zip(self.read, tensors):
            own.copy_(given)
        for own, new in zip(self.results, self.work(*self.read)):
            if own is not None:
                own.copy_(new)
        return self.results


@pytest.fixture
def recording(monkeypatch):
    """Records on the CPU."""
    class Counted(StandIn):
        pass

    monkeypatch.setattr(graphs, "_Record", Counted)
    monkeypatch.setattr(graphs, "_recordable", lambda tensors: True)
    monkeypatch.setattr(graphs, "_conditions", lambda device: ())
    monkeypatch.setattr(graphs, "_error_if_waiting", contextlib.nullcontext)
    monkeypatch.setattr(graphs, "_random_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(
        graphs, "_set_random_state", lambda state, device: torch.set_rng_state(state))
    return Counted


def test_records_follow_their_tensors(recording):
    recorder = Recorder()
    for i in range(5):
        x = torch.full((3,), float(i))
        doubled, nothing = recorder("double", NOTHING, lambda x: (2 * x, None), x)
        assert torch.equal(doubled, 2 * x)
        assert nothing is None
    assert recording.replays == 4


def test_other_shapes_types_and_names_are_other_work(recording):
    recorder = Recorder()
    for x in (torch.ones(3), torch.ones(4), torch.ones(3).double(), torch.ones(3, 2).T[0]):
        for name, factor in (("double", 2), ("treble", 3)):
            for _ in range(3):
                (result,) = recorder(name, NOTHING, lambda x, factor=factor: (factor * x,), x)
                assert torch.equal(result, factor * x)


def test_work_that_python_has_a_part_in_is_not_replayed(recording):
    recorder, calls = Recorder(), []

    def work(x):
        calls.append(None)
        return (x + len(calls),)

    results = [recorder("count", NOTHING, work, torch.zeros(1))[0].item() for _ in range(4)]
    assert results == sorted(set(results))  # counts on


def test_work_that_fails_to_be_recorded_runs_as_it_is(recording):
    recording.failing = True
    recorder = Recorder()
    for i in range(4):
        (result,) = recorder("add", NOTHING, lambda x: (x + 1,), torch.tensor([float(i)]))
        assert result.item() == i + 1
    assert recording.replays == 0


def test_errors_of_the_work_are_its_own(recording):
    def work(x):
        raise RuntimeError("no such layer")

    for recorder in (Recorder(), Recorder(may_wait=True)):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no such layer"):
                recorder("fail", NOTHING, work, torch.zeros(1))


def test_draws_are_those_of_work_that_is_not_recorded(recording):
    def draws(call):
        torch.manual_seed(0)
        return [call() for _ in range(5)]

    recorder = Recorder()
    work = lambda x: (x + torch.randn(3),)  # noqa: E731
    recorded = draws(lambda: recorder("draw", NOTHING, work, torch.zeros(3))[0].clone())
    assert torch.equal(torch.stack(recorded), torch.stack(draws(lambda: work(torch.zeros(3))[0])))
    assert recording.replays == 4


def test_work_that_waits_is_never_recorded(recording, monkeypatch):
    @contextlib.contextmanager
    def error_if_waiting():
        state["forbidden"] = True
        try:
            yield
        finally:
            state["forbidden"] = False

    def work(x):
        draw = torch.rand(1)
        if state["forbidden"]:
            raise RuntimeError("called a synchronizing CUDA operation")
        return (x + draw,)

    state = {"forbidden": False}
    monkeypatch.setattr(graphs, "_error_if_waiting", error_if_waiting)
    recorder = Recorder(may_wait=True)
    torch.manual_seed(0)
    drawn = [recorder("wait", NOTHING, work, torch.zeros(1))[0].item() for _ in range(3)]
    torch.manual_seed(0)
    assert drawn == [torch.rand(1).item() for _ in range(3)]
    assert recording.replays == 0


def test_shapes_that_never_come_again_leave_nothing_behind(recording):
    recorder = Recorder()
    for n in range(1, 200):
        recorder("double", NOTHING, lambda x: (2 * x,), torch.ones(n))
    assert len(recorder._records) < 100


def test_the_last_used_records_are_kept(recording):
    recorder = Recorder(most=2, most_bytes=4 * 100)

    def double(*sizes):
        for n in sizes:
            assert (recorder("double", NOTHING, lambda x: (2 * x,), torch.ones(n))[0] == 2).all()
        return {one.read[0].numel() for one in recorder._records.values() if one and one.graph}

    # The last ones are too many numbers.
    assert double(10, 10, 20, 20, 10, 30, 30, 1000, 1000, 10) == {10, 30}
    # What was let go is not recorded again, or shapes in turn would be for ever.
    assert double(20, 20, 20) == {10, 30}


def test_work_on_other_weights_is_other_work(recording):
    """As after a module has moved: what was recorded reads the old addresses."""
    linear, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    recorder, work = Recorder(), lambda x: (linear(x).detach(),)
    for _ in range(2):
        for _ in range(3):
            assert torch.equal(recorder("linear", linear, work, x)[0], linear(x))
        linear.weight = torch.nn.Parameter(linear.weight.detach() + 1)


def test_maps_and_fits_are_those_without_records(net, images, quick_fit, recording, monkeypatch):
    def maps():
        attr = quick_fit(InfoBottleneckAttribution(net, ["stage1", "stage2"]),
                         list(images.split(8)), steps=9)
        calls = [{}, {"information": "redundant"}, {"target": None}, {"weighting": "none"},
                 {"internal_batch_size": 5}]
        found = [attr.attribute(images, **{"target": i % 5, **call})
                 for call in calls for i in range(4)]
        return [attr.history.information, *found, attr.evidence(images), attr.evidence(-images),
                attr.evidence(images)]

    with pytest.MonkeyPatch.context() as off:
        off.setattr(graphs, "_recordable", lambda tensors: False)
        expected = maps()
    monkeypatch.setattr(fit_networks, "_records_steps", lambda model: True)
    recorded = maps()
    assert recording.replays > 20
    for one, other in zip(recorded, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_fit_starts_without_records(fitted, images, recording):
    maps = [fitted.attribute(images, 0) for _ in range(3)]
    other = copy.deepcopy(fitted)
    before = recording.replays
    assert torch.equal(other.attribute(images, 0), maps[0])
    assert recording.replays == before
    again = pickle.loads(pickle.dumps(other))
    assert torch.equal(again.attribute(images, 0), maps[0])


def test_nan_is_told_of_recorded_maps_too(net, fitted, images, recording):
    for _ in range(3):
        fitted.attribute(images, 0)
    net.stage1[0].bias.data.fill_(float("nan"))
    with (
        pytest.warns(UserWarning, match="weights have changed"),
        pytest.raises(ValueError, match="layer 'stage1' returned NaN"),
    ):
        fitted.attribute(images, 0)


def test_batches_of_several_sizes_train_alike(net, images, quick_fit, recording, monkeypatch):
    """The last batch is smaller: its gradients are not those that records keep."""
    def losses():
        attr = quick_fit(InfoBottleneckAttribution(net, "stage2"),
                         [images[:12], images[12:24], images[24:]], steps=12)
        return torch.tensor([attr.history.information, attr.history.info_nce])

    expected = losses()
    monkeypatch.setattr(fit_networks, "_records_steps", lambda model: True)
    torch.testing.assert_close(losses(), expected, rtol=1e-4, atol=1e-5)
    assert recording.replays > 5
    assert fit_networks.Recorder is Recorder


def test_labels_that_nobody_asks_for_may_be_anything(net, images, recording, monkeypatch):
    monkeypatch.setattr(fit_networks, "_records_steps", lambda model: True)
    loader = [(images, [f"{i}.png" for i in range(len(images))])]
    InfoBottleneckAttribution(net, "stage2").fit(loader, 4, progress=False, bank_size=64)
    assert recording.replays
    numbers = [(images, torch.arange(len(images)) % 5)]
    attr = InfoBottleneckAttribution(net, "stage2")
    history = attr.fit(numbers, 4, task="labels", progress=False, bank_size=64)
    assert len(history.distortion) == 4
