"""Tuning with Optuna: an optimizer's settings on one seed, at random or by Bayesian search."""

from __future__ import annotations

import json
from pathlib import Path

import optuna

from published.recipes import OPTIMIZERS, SPACES
from published.recorded import SETTINGS
from published.results import Experiment
from published.training import network_of, train

__all__ = ["SEED", "key", "known_settings", "remember", "sweep", "tunable"]

SEED = 100  # that no result is made with
WORST = 1e3  # what a run that diverged counts as


def sweep(base: Experiment, trials: int, folder: Path, bayesian: bool = True) -> optuna.Study:
    """The study of one optimizer, brought to a number of trials; goes on where it was.

    A Bayesian one draws its first third at random, three at least.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"{base.name}_{base.seconds:g}s_{'bayesian' if bayesian else 'random'}",
        storage=f"sqlite:///{folder / 'studies.db'}",
        load_if_exists=True,
    )
    done = len(completed(study))
    # seeded by the trials done, or their draws would be repeated
    study.sampler = (
        optuna.samplers.TPESampler(n_startup_trials=max(3, trials // 3), seed=done)
        if bayesian
        else optuna.samplers.RandomSampler(seed=done)
    )
    study.optimize(lambda t: error(base, t, folder), n_trials=max(0, trials - done))
    return study


def completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that have a value; one that was interrupted has none."""
    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


def error(base: Experiment, trial: optuna.Trial, folder: Path) -> float:
    """The final held-out error with the settings of a trial."""
    names = OPTIMIZERS[base.optimizer].settings
    run = base.replace(settings={name: suggest(trial, name) for name in names})
    found = train(run, folder)["relative_l2"]
    run.checkpoint(folder).unlink()
    return found if found < WORST else WORST


def suggest(trial: optuna.Trial, name: str) -> float:
    """A value of a setting from its space, with three digits."""
    low, high, logarithmic = SPACES[name]
    return float(f"{trial.suggest_float(name, low, high, log=logarithmic):.3g}")


def known_settings(experiment: Experiment, best: Path) -> dict[str, float]:
    """The best of a sweep, else the published settings, else the optimizer's defaults."""
    parameters = sum(p.numel() for p in network_of(experiment).parameters())
    published = SETTINGS.get((experiment.problem, parameters, experiment.optimizer))
    swept = json.loads(best.read_text()) if best.exists() else {}
    return swept.get(key(experiment), {}).get("settings") or published or {}


def tunable(optimizer: str) -> bool:
    """Whether it has settings that a sweep looks for."""
    return bool(OPTIMIZERS[optimizer].settings)


def remember(experiment: Experiment, study: optuna.Study, best: Path) -> bool:
    """Add the best settings of a study, and how they were found, to the file that is committed.

    Returns:
        Whether they were added: those of a smaller error, as of a longer sweep, stay.
    """
    entry = {
        "settings": {name: float(f"{v:.3g}") for name, v in study.best_params.items()},
        "relative_l2": float(f"{study.best_value:.3g}"),
        "trials": len(completed(study)),
        "study": study.study_name,
    }
    known = json.loads(best.read_text()) if best.exists() else {}
    if known.get(key(experiment), {}).get("relative_l2", WORST) < entry["relative_l2"]:
        return False
    best.parent.mkdir(parents=True, exist_ok=True)
    best.write_text(json.dumps({**known, key(experiment): entry}, indent=1) + "\n")
    return True


def key(experiment: Experiment) -> str:
    """What settings are stored under."""
    return f"{experiment.problem} {'-'.join(map(str, experiment.network))} {experiment.optimizer}"
