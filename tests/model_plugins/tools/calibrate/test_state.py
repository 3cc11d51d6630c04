"""The parts of an interrupted calibration that are kept and those that start again."""

from pathlib import Path

import numpy as np

from prismoe.model_plugins.tools.calibrate.state import State


def test_other_settings_start_the_measurement_again(tmp_path: Path) -> None:
    state = State.at(tmp_path / "state.npz", "model", {0: 4})
    state.begin_measuring("first")
    state.measured, state.measured_divergence = 3, np.array(0.5)
    state.tokens_LM, state.uses_LM = np.array([[5, 2]]), np.array([[10, 4]])
    state.begin_measuring("first")
    assert (state.measured, float(state.measured_divergence)) == (3, 0.5)
    state.begin_measuring("second")
    assert state.measured == 0
    assert not any(sums.any() for sums in (state.measured_divergence, state.tokens_LM, state.uses_LM))


def test_other_candidates_start_their_trials_again(tmp_path: Path) -> None:
    state = State.at(tmp_path / "state.npz", "model", {0: 4})
    state.begin_trying("first")
    state.tried, state.tried_divergence_C = 3, np.array([0.5, 0.25])
    state.begin_trying("first")
    assert (state.tried, state.tried_divergence_C.tolist()) == (3, [0.5, 0.25])
    state.begin_trying("second")
    assert state.tried == 0 and not state.tried_divergence_C.any()
