"""The prose of a report, for a reader who knows no forecasting; {} are filled with names and numbers.

What systems, scores and baselines are is said where each is registered.
"""

INTRODUCTION = (
    "Each method below is trained to forecast the next frames of a field from the known ones. A diffusion method "
    "starts from noise and denoises it step by step with a neural network. All methods are to have the same data, the "
    "same network, as many training steps, and as many network evaluations (NFE) for each frame. Whether that holds "
    "for all runs is checked further down."
)

ENSEMBLE = (
    "Each method forecasts every test window several times, from different noise: these forecasts are the members of "
    "an ensemble. How far the members lie apart says how sure the method is."
)

#: Which values of a score are better.
BETTER = {"low": "lower", "high": "higher", "one": "1", "none": "neither"}

WORTH = "Baselines need no training and show what a score is worth:"

SINGLE_SEED = (
    "Every method was trained with one seed, so there is no standard deviation over seeds: whether a difference is due "
    "to the methods or to chance in training is unknown. Add seeds with `--seeds=0,1,2`."
)

MARKS = (
    "Means over the leads, but for distances (fsd), which are given at one lead. Lower is better (↓), higher (↑), or "
    "the closer to 1 (→ 1); bold is the best of the methods, baselines aside."
)

SEEDS = (
    "Values are the mean over training seeds ± their standard deviation (std, divisor n - 1). The best two of a score "
    "are significantly different if they differ by more than their combined std over seeds, the root of the sum of "
    "squares; two or three seeds estimate it roughly. All methods are scored on the same test windows; the variation "
    "between windows is not included."
)

BEST = "**{}**: {} is best"
SIGNIFICANT = "{}, and significantly different from the others (difference > combined std over seeds)."
NOT_SIGNIFICANT = (
    "{}, but not significantly different from {} (difference within the combined std over seeds)."
)
UNKNOWN = "{}; with one seed, whether the difference is significant is unknown."

BOUND = "In crps above {}, which no forecast can beat but by chance: {}."

COMPARABLE = (
    "Yes: same data, windows, networks, training and evaluation in all runs, as far as a method takes them. Only {} "
    "differ."
)

INCOMPARABLE = (
    "Not in everything. Beside {}, these settings differ, and with them the scores may differ for reasons that are "
    "not the method:"
)

DETERMINISTIC = (
    "{} makes a deterministic forecast: one member whatever the others draw, hence no spread, and its CRPS is its "
    "absolute error. It takes {:g} NFE a frame."
)

OTHER_NFE = "NFE a frame are not the same: {}."

OTHER_FRAMES = "The work of a forecast is not the same; frames through a network for each frame: {}."

RESCALED = (
    "With the `init_rescaled` clock, later frames of a forecast receive more evaluations than the NFE says."
)

SWEPT = (
    "Every combination of the swept values was trained, or only evaluated where the weights do not depend on it, and "
    "scored on the validation split. For each method the one with the lowest mean CRPS over seeds was **chosen on the "
    "validation split**; the test split was scored for it alone, and is what all other sections show."
)

SWEPT_LEADS = (
    "Validation scores are means over the first {} leads, which all points have; some were scored at more."
)

SWEPT_TRUTH = (
    "`{}` changes which data or windows are scored: the validation scores of its values are not of the same truth, and "
    "a lower CRPS may mean easier windows."
)

#: What the columns of the table of costs count.
COSTS = {
    "parameters": "of all networks, frozen ones among them.",
    "NFE a frame": "network evaluations for each frame of a member: those that the frame takes part in; where each "
    "evaluation makes another frame, those of a block over its frames.",
    "network frames a frame": "frames that pass through a network for each frame of a member: an evaluation of a "
    "window of f frames counts f, one of an image, or of frames as its channels, 1. This is the currency in which "
    "methods with unlike networks compare; a rolling window's warm-up is not in it.",
    "GFLOP a frame": "1e9 floating-point operations of matrix products and convolutions for each frame of a member, "
    "counted in the program; both sides of a branch count.",
    "training, all stages": "steps and seconds (compilation among them) of every network, those trained in another run "
    "among them; GFLOP forward and backward, nothing computed twice. A dash: unknown.",
    "sampling": "wall time for each frame of a member, without compilation.",
}

OTHER_DEVICES = "Times were measured on different devices and do not compare."
