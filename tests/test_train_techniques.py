"""Optimizers, schedules, clipping, smoothing and averaging in a run: each does what it says, and is resumed bit for bit."""

import dataclasses
import json
import math

import numpy as np
import pytest

import convkern as ck
from convkern.train import Config, Interrupted, checkpoint, loop, resume, train
from convkern.train import folder as folders
from convkern.train.evaluation import evaluate, load_model
from convkern.train.techniques import Schedule, build_optimizer

from .test_train import assert_same_run, interrupt_after, write_data

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

LR = 0.5
STEPS = 10  # of an epoch


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path, 100, 40)
    return Config(data="mnist", data_dir=str(tmp_path), epochs=3, batch_size=32, lr=0.002, out=str(tmp_path / "run"))


def rates(losses=None, **options):
    """The rate of every step of a run with these options, and the test losses of its epochs."""
    config = Config(**{"lr": LR, "optimizer": "sgd", "epochs": 6, **options})
    optimizer = build_optimizer(config, ck.nn.Linear(1, 1))
    schedule = Schedule(config, optimizer, STEPS)
    found = []
    for step in range(config.epochs * STEPS):
        schedule.begin_step(step)
        found.append(optimizer.param_groups[0]["lr"])
        if step % STEPS == STEPS - 1:
            schedule.end_epoch(step + 1, losses[step // STEPS] if losses else 1.0)
    return np.array(found)


def half_cosine(low, share):
    return low + (LR - low) * (1 + np.cos(np.pi * share)) / 2


T = np.arange(6 * STEPS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, LR + 0 * T),
        ({"schedule": "cosine"}, half_cosine(0, T / 60)),
        ({"schedule": "cosine", "min_lr": 0.1}, half_cosine(0.1, T / 60)),
        ({"schedule": "step"}, LR * 0.1 ** (T // 20)),
        ({"schedule": "step", "period": 1, "gamma": 0.5}, LR * 0.5 ** (T // 10)),
        ({"schedule": "multi-step"}, LR * 0.1 ** (1 * (T >= 30) + (T >= 45))),
        ({"schedule": "multi-step", "milestones": (1, 4), "gamma": 0.2}, LR * 0.2 ** (1 * (T >= 10) + (T >= 40))),
        ({"schedule": "exponential"}, LR * 0.9 ** (T / 10)),
        ({"schedule": "exponential", "gamma": 0.5}, LR * 0.5 ** (T / 10)),
        ({"schedule": "cosine-restarts"}, half_cosine(0, (T % 20) / 20)),
        (
            {"schedule": "cosine-restarts", "period": 1, "period_mult": 2, "min_lr": 0.01},
            half_cosine(0.01, np.where(T < 10, T / 10, np.where(T < 30, (T - 10) / 20, (T - 30) / 40))),
        ),
        ({"schedule": "plateau"}, LR * 0.1 ** (T >= 50)),  # the loss of the second to the fifth epoch is no better
        (
            {"schedule": "plateau", "patience": 0, "gamma": 0.5, "min_lr": 0.2},
            np.where(T < 20, LR, np.where(T < 40, 0.25, 0.2)),
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_rates_follow_the_formula(options, expected):
    losses = (
        [1.0, 1.0, 0.5, 0.5, 0.4, 0.3] if options.get("patience") == 0 else None
    )  # no better at the 2nd and the 4th
    np.testing.assert_allclose(rates(losses, **options), expected, rtol=1e-12)


def test_one_cycle_rises_and_falls_and_momentum_goes_against_it():
    found = rates(schedule="one-cycle", pct_start=0.25)
    top = int(found.argmax())
    assert top == 60 * 0.25 - 1
    assert found[0] == pytest.approx(LR / 25)
    assert found[top] == pytest.approx(LR)
    assert found[-1] == pytest.approx(LR / 25e4)
    assert (np.diff(found[: top + 1]) > 0).all()
    assert (np.diff(found[top:]) < 0).all()
    config = Config(schedule="one-cycle", epochs=2)
    optimizer = build_optimizer(config, ck.nn.Linear(1, 1))
    Schedule(config, optimizer, STEPS)
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.95)
    plain = dataclasses.replace(config, optimizer="sgd", momentum=0.0)
    optimizer = build_optimizer(plain, ck.nn.Linear(1, 1))
    Schedule(plain, optimizer, STEPS)
    assert optimizer.param_groups[0]["momentum"] == 0  # no momentum, no cycle of it


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential", "cosine-restarts", "plateau"])
def test_warm_up_goes_before_every_schedule(schedule):
    found = rates(schedule=schedule, warmup_epochs=1.5)
    np.testing.assert_allclose(found[:15], LR * np.arange(1, 16) / 16, rtol=1e-12)
    assert found[15] == pytest.approx(LR)
    if schedule == "cosine":
        np.testing.assert_allclose(found[15:], half_cosine(0, np.arange(45) / 45), rtol=1e-12)
    if schedule == "plateau":  # best after the second epoch, the first that counts; three more are waited for
        np.testing.assert_allclose(found[15:], LR, rtol=1e-12)


def test_milestones_are_epochs_of_the_run_also_after_a_warm_up():
    found = rates(schedule="multi-step", warmup_epochs=2, milestones=(3, 5))
    assert [int(i) for i in np.flatnonzero(found[1:] < 0.99 * found[:-1]) + 1] == [30, 50]


def test_optimizers_are_built_as_asked():
    model = ck.models.resnet20()
    for options, kind, expected in [
        ({"optimizer": "sgd"}, ck.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ({"optimizer": "sgd", "momentum": 0.5, "nesterov": True}, ck.optim.SGD, {"momentum": 0.5, "nesterov": True}),
        ({"optimizer": "adagrad"}, ck.optim.Adagrad, {"lr_decay": 0.0}),
        ({"optimizer": "rmsprop"}, ck.optim.RMSprop, {"alpha": 0.99, "momentum": 0.0}),
        (
            {"optimizer": "rmsprop", "alpha": 0.9, "momentum": 0.7},
            ck.optim.RMSprop,
            {"alpha": 0.9, "momentum": 0.7},
        ),
        ({"optimizer": "adam"}, ck.optim.Adam, {"betas": (0.9, 0.999)}),
        ({"optimizer": "adam", "beta1": 0.0, "beta2": 0.99}, ck.optim.Adam, {"betas": (0.0, 0.99)}),
        ({"optimizer": "adamw", "beta1": 0.8}, ck.optim.AdamW, {"betas": (0.8, 0.999)}),
    ]:
        built = build_optimizer(Config(lr=0.03, weight_decay=0.02, **options), model)
        assert type(built) is kind
        (group,) = built.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.03, 0.02)
        assert expected.items() <= group.items()
        split = build_optimizer(Config(lr=0.03, weight_decay=0.02, decay_biases=False, **options), model)
        assert [group["weight_decay"] for group in split.param_groups] == [0.02, 0.0]
        assert all(len(p.shape) > 1 for p in split.param_groups[0]["params"])
        spared = {id(p) for p in split.param_groups[1]["params"]}
        named = {id(p) for name, p in model.named_parameters() if "bn" in name or name.endswith("bias")}
        norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in m._parameters.values()}
        assert spared == named | norms
        assert len(spared) + len(split.param_groups[0]["params"]) == len(list(model.parameters()))


TECHNIQUES = [
    dict(optimizer="sgd", lr=0.02, nesterov=True, schedule="step", period=1, warmup_epochs=0.75, ema=0.9),
    dict(optimizer="sgd", lr=0.02, schedule="one-cycle", weight_decay=1e-3, decay_biases=False),
    dict(optimizer="adagrad", schedule="plateau", patience=0, label_smoothing=0.1, warmup_epochs=0.5),
    dict(optimizer="rmsprop", momentum=0.5, lr=0.0005, schedule="exponential", clip_value=0.01),
    dict(optimizer="adamw", weight_decay=0.1, schedule="cosine-restarts", period=1, clip_norm=0.5, ema=0.5),
    dict(optimizer="adam", schedule="multi-step", milestones=(1, 2), warmup_epochs=0.25),
]


@pytest.mark.parametrize("options", TECHNIQUES, ids=lambda o: f"{o['optimizer']}-{o['schedule']}")
def test_resumed_run_equals_uninterrupted(config, tmp_path, monkeypatch, options):
    """Stopped within an epoch, at its very end, and between two: 4 steps an epoch."""
    config = dataclasses.replace(config, **options)
    whole = train(dataclasses.replace(config, out=str(tmp_path / "whole")), quiet=True)
    for steps in (3, 1, 4):  # after steps 3, 4 and 8 of 12
        again = (lambda: train(config)) if steps == 3 else (lambda: resume(config.out))
        with monkeypatch.context() as patch:
            interrupt_after(steps, patch)
            with pytest.raises(Interrupted):
                again()
    resume(config.out, quiet=True)
    assert_same_run(folders.existing(config.out), whole.folder)
    assert Config.load(whole.folder / folders.CONFIG) == dataclasses.replace(
        config, out=str(whole.folder), device="cpu"
    )
    assert evaluate(config.out).accuracy == whole.best_accuracy


@pytest.mark.parametrize("options", TECHNIQUES, ids=lambda o: f"{o['optimizer']}-{o['schedule']}")
def test_every_technique_learns(config, options):
    train(dataclasses.replace(config, epochs=3, **options), quiet=True)
    lines = (folders.existing(config.out) / folders.METRICS).read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"schedule": "exponential"}, True),
        ({"schedule": "step", "period": 1}, True),
        ({"schedule": "step"}, False),
        ({"schedule": "cosine"}, False),
        ({"schedule": "multi-step", "milestones": (1,)}, True),
        ({"schedule": "multi-step"}, False),
    ],
    ids=str,
)
def test_epochs_grow_where_the_schedule_allows_it(config, tmp_path, options, allowed):
    config = dataclasses.replace(config, epochs=2, **options)
    train(config, quiet=True)
    if not allowed:
        with pytest.raises(ValueError, match=f"epochs cannot change .*, for its {options['schedule']} schedule"):
            resume(config.out, epochs=3)
        return
    whole = train(dataclasses.replace(config, epochs=3, out=str(tmp_path / "whole")), quiet=True)
    resume(config.out, epochs=3, quiet=True)
    assert_same_run(folders.existing(config.out), whole.folder)


def test_averaged_weights_are_tested_kept_and_used(config, monkeypatch):
    decay, seen = 0.8, []
    real = loop.Trainer._step

    def watched(trainer, x, labels):
        result = real(trainer, x, labels)
        seen.append(trainer.model.state_dict())
        return result

    monkeypatch.setattr(loop.Trainer, "_step", watched)
    result = train(dataclasses.replace(config, ema=decay), quiet=True)
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: decay * a + (1 - decay) * weights[name] for name, a in expected.items()}
    saved = checkpoint.load(result.folder / checkpoint.LAST)
    model, _, _ = load_model(result.folder, "last")
    for name, a in model.state_dict().items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(a, saved.tested[name])
        np.testing.assert_array_equal(seen[-1][name], saved.weights[name])
        assert not np.array_equal(a, seen[-1][name])
    assert evaluate(result.folder, which="last").accuracy == result.accuracy
    last = json.loads((result.folder / folders.METRICS).read_text().splitlines()[-1])
    assert last["test_loss"] == evaluate(result.folder, which="last").loss


def step_of(config, **options):
    """How one step of plain gradient descent changed each parameter, and its loss."""
    plain = dict(optimizer="sgd", momentum=0.0, lr=1.0, schedule="constant")
    trainer = loop.Trainer(dataclasses.replace(config, **plain, **options))
    before = [p.data.copy() for p in trainer.model.parameters()]
    x, labels = next(iter(trainer.loader))
    loss, _ = trainer._step(x, labels)
    return [p.data - b for p, b in zip(trainer.model.parameters(), before, strict=True)], loss, trainer


def norm(arrays):
    return math.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays))


def test_gradients_are_clipped(config):
    free, _, _ = step_of(config)
    small, _, _ = step_of(config, clip_norm=norm(free) / 4)
    for a, b in zip(free, small, strict=True):
        np.testing.assert_allclose(b, a / 4, rtol=1e-3, atol=1e-6)
    most = max(np.abs(a).max() for a in free) / 3
    flat, _, _ = step_of(config, clip_value=float(most))
    for a, b in zip(free, flat, strict=True):
        np.testing.assert_allclose(b, np.clip(a, -most, most), rtol=1e-3, atol=1e-6)
    untouched, _, _ = step_of(config, clip_norm=norm(free) * 2)
    for a, b in zip(free, untouched, strict=True):
        np.testing.assert_array_equal(a, b)


def test_labels_are_smoothed_while_training_only(config):
    _, loss, trainer = step_of(config)
    _, smooth, smoothing = step_of(config, label_smoothing=0.25)
    model = loop.build_model(trainer.facts)
    x, labels = next(iter(trainer.loader))
    log_p = ck.nn.functional.log_softmax(model(x), 1).detach().numpy().astype(np.float64)
    right = -log_p[np.arange(len(labels)), labels].mean()
    assert loss == pytest.approx(right, rel=1e-5)
    assert smooth == pytest.approx(0.75 * right - 0.25 * log_p.mean(), rel=1e-5)
    found = loop.evaluate_model(smoothing.model, smoothing.test_set, smoothing.facts, 32)
    plain = loop.build_model(trainer.facts)
    plain.load_state_dict(smoothing.model.state_dict())
    assert found.loss == loop.evaluate_model(plain, trainer.test_set, trainer.facts, 32).loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "momentum is for the optimizer sgd or rmsprop, got momentum=0.9 with adam"),
        ({"optimizer": "adam", "nesterov": True}, "nesterov is for the optimizer sgd, got nesterov=True with adam"),
        ({"optimizer": "sgd", "beta1": 0.9}, "beta1 is for the optimizer adam or adamw"),
        ({"optimizer": "sgd", "beta2": 0.9}, "beta2 is for the optimizer adam or adamw"),
        ({"optimizer": "sgd", "alpha": 0.9}, "alpha is for the optimizer rmsprop"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0}, "nesterov needs momentum above 0"),
        ({"optimizer": "sgd", "nesterov": 1}, "nesterov must be True or False, got 1"),
        ({"beta1": -0.1}, "beta1 must be at least 0 and below 1, got -0.1"),
        ({"beta2": "big"}, "beta2 must be a number, got 'big'"),
        ({"decay_biases": "no"}, "decay_biases must be True or False, got 'no'"),
        ({"period": 3}, "period is for the schedule step or cosine-restarts, got period=3 with cosine"),
        ({"schedule": "step", "period": 0}, "period must be at least 1, got 0"),
        ({"schedule": "step", "period_mult": 2}, "period_mult is for the schedule cosine-restarts"),
        ({"schedule": "cosine-restarts", "period_mult": 0}, "period_mult must be at least 1, got 0"),
        ({"milestones": (1,)}, "milestones is for the schedule multi-step"),
        ({"schedule": "multi-step", "milestones": (3, 2)}, "milestones must be increasing epochs .*, got 3, 2"),
        ({"schedule": "multi-step", "milestones": (12,)}, "milestones must be .* before the end, 12, got 12"),
        ({"schedule": "multi-step", "milestones": (2,), "warmup_epochs": 2}, "milestones must be .* after the warm-up"),
        ({"schedule": "multi-step", "milestones": ()}, "milestones must be a tuple of increasing epochs"),
        ({"schedule": "multi-step", "milestones": (1.5,)}, "milestones must be an integer, got 1.5"),
        ({"gamma": 0.5}, "gamma is for the schedule step or multi-step or exponential or plateau"),
        ({"schedule": "exponential", "gamma": 1.5}, "gamma must be above 0 and below 1, got 1.5"),
        ({"patience": 2}, "patience is for the schedule plateau"),
        ({"schedule": "plateau", "patience": -1}, "patience must be at least 0, got -1"),
        ({"schedule": "step", "min_lr": 0.1}, "min_lr is for the schedule cosine or cosine-restarts or plateau"),
        ({"min_lr": 0.004}, "min_lr must be at least 0 and below the learning rate 0.004, got 0.004"),
        ({"pct_start": 0.5}, "pct_start is for the schedule one-cycle"),
        ({"schedule": "one-cycle", "pct_start": 1.0}, "pct_start must be above 0 and below 1, got 1.0"),
        ({"schedule": "one-cycle", "warmup_epochs": 1}, "warmup_epochs must be 0 with the schedule one-cycle"),
        ({"schedule": "one-cycle", "beta1": 0.5}, "beta1 must not be given with the schedule one-cycle"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0 and below the 12 epochs, got -1"),
        ({"warmup_epochs": 12}, "warmup_epochs must be at least 0 and below the 12 epochs, got 12"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number above 0, got 0.0"),
        ({"clip_value": -1.0}, "clip_value must be a finite number above 0, got -1.0"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "clip_norm and clip_value must not both be given"),
        ({"ema": 1.0}, "ema must be above 0 and below 1, got 1.0"),
        ({"ema": True}, "ema must be a number, got True"),
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_refused_by_its_name(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Config(**options)


def test_a_warm_up_that_takes_all_steps_is_refused(config):
    with pytest.raises(ValueError, match=r"warmup_epochs must be less than the run of 12 steps, got 2\.99"):
        loop.Trainer(dataclasses.replace(config, warmup_epochs=2.99))


def test_milestones_come_back_from_json(tmp_path):
    config = Config(schedule="multi-step", milestones=(3, 7))
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config


def test_state_of_another_schedule_is_refused():
    config = Config(schedule="plateau")
    optimizer = build_optimizer(config, ck.nn.Linear(1, 1))
    state = Schedule(config, optimizer, STEPS).state_dict()
    other = dataclasses.replace(config, schedule="cosine")
    with pytest.raises(ValueError, match=r"the schedule's state has \['plateau'\], expected \['stepped'\]"):
        Schedule(other, build_optimizer(other, ck.nn.Linear(1, 1)), STEPS).load_state_dict(state)
