"""The sentences of a report: what methods, scores and baselines are, for a reader who knows none of them."""

#: What each method does, in a sentence.
METHODS = {
    "standard": "all frames of a window start as noise and are cleaned together, at one noise level, each with noise "
    "of its own; a longer forecast is made window after window.",
    "dynamical": "as standard, but frames and noise are mixed along time before they are blended, so that each frame "
    "leans on the one before it while it is cleaned.",
    "rolling": "the noise level grows with the distance into the future: the next frame is nearly clean when it "
    "leaves the window, and a frame of pure noise enters at the far end.",
    "rolling_dynamical": "both at once: a sliding window, and frames and noise mixed along time.",
    "regression": "no diffusion: one evaluation of the same network predicts the expected frames. It has a single "
    "member, hence no spread, and its CRPS is its absolute error.",
}

#: What each score says, and which direction is better; {} is the unit of the data.
SCORES = {
    "crps": ("how far the ensemble lies from what happened, with honest uncertainty rewarded ({})", "lower"),
    "rmse": ("error of the ensemble's mean ({})", "lower"),
    "spread": ("how far the members lie apart ({}); it should match the rmse", "neither"),
    "spread_skill": (
        "spread over error: below 1 the ensemble is too sure of itself, above 1 too unsure",
        "1",
    ),
    "spectrum_error": (
        "how wrongly strong structures of each size are, in powers of ten; blur and graininess raise it",
        "lower",
    ),
    "fsd": (
        "Frechet spectral distance at one lead: whether forecasts as a crowd look like the truth as a crowd, by their "
        "Fourier spectra (square of {}); other true frames score the floor, and a forecast still close to what "
        "happened, as at the first leads, may score below it",
        "lower",
    ),
    "mse_sum": ("squared error of single members, summed over the frame", "lower"),
}

#: What each baseline is.
BASELINES = {
    "persistence": "the last known frame, unchanged.",
    "dressed persistence": "the last known frame plus changes seen in the training data.",
    "climatology (pooled)": "frames drawn at random from the training data.",
    "climatology (same crop)": "the same, drawn from the same place.",
}

WORTH = "Baselines need no training and show what a score is worth:"

INTRODUCTION = (
    "A diffusion model forecasts by starting from noise and cleaning it step by step with a neural network. Its "
    "schedule says how much noise each frame holds at every step, and whether the noise of neighbouring frames is "
    "related. The methods below are to differ in the schedule alone: same data, same network, as many steps of "
    "training, and as many evaluations of the network for each frame. Whether that holds for all runs is checked "
    "further down."
)

ENSEMBLE = (
    "Each method forecasts every test window several times, from different noise: these forecasts are the members of "
    "an ensemble. How far the members lie apart says how sure the method is."
)

SINGLE_SEED = (
    "Every method was trained with one seed, so there is no spread over seeds: whether a difference is due to the "
    "methods or to chance in training cannot be said. Add seeds with `--seeds=0,1,2`."
)

MARKS = (
    "Means over the leads, but for distances (fsd), which stand at one lead. Lower is better (↓), higher (↑), or the "
    "closer to 1 (→ 1); bold is the best of the methods, baselines aside."
)

SEEDS = (
    "Values are the mean over the seeds of training ± their standard deviation (divisor n - 1). The best two of a "
    "score are told apart if they differ by more than the root of the sum of their squared deviations; two or three "
    "seeds give that deviation roughly. All methods are scored on the same test windows; what other windows would "
    "change is not contained."
)

COMPARABLE = (
    "Yes: same data, windows, network, optimizer, training steps, averaging of weights, sampler and evaluation in "
    "all runs. Only {} differ."
)

INCOMPARABLE = (
    "Not in everything. Beside {}, these settings differ, and with them the scores may differ for reasons that are "
    "not the method:"
)

RESCALED = (
    "With the `init_rescaled` clock, later frames of a forecast receive more evaluations of the network than the "
    "budget says."
)

REGRESSION = (
    "The regression takes one evaluation a frame and has one member, whatever the others take: both are what a "
    "regression is, not a difference in budget."
)

OTHER_DEVICES = "Times were measured on different devices and do not compare."
