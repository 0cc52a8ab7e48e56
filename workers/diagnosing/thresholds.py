"""How much a diagnostic looks at, and what it takes to say anything; from where on it speaks is a
project's to set: see webapp.runs.thresholds."""

# sequential_client
PAIRS = 8  # of a forward_backward and its optim_step, at least
PAIRS_KEPT = 32
SHORTEST_PASS = 0.1  # seconds: while a shorter one runs, the next request is still on its way

# stale_sampler
STALE_CALLS = 4

# sampler_trainer_disagree
MEASURED = 3  # newest steps that learned from samples; the mean of them counts
LOOKED_BACK = 16  # steps, for those that learned from fresh samples

# zero_signal_groups
ZERO_STEPS = 3  # at least
ZERO_STEPS_KEPT = 8

# non_finite_or_spiking
CALM_STEPS = 10  # before a spike, at least
WINDOW = 20  # steps before one that it is measured against, and how long it is spoken of
LOSS_NATS = 0.5
LOSS_SPREADS = 10.0  # median absolute deviations above the median
BATCH_SHOWN = 12

# reward_hacking
ANSWERS = 64  # at least
ANSWERS_KEPT = 512
LENGTH_GROWTH = 1.5  # of the newer half against the older
UNREADABLE_SHARE = 0.05  # of an answer's characters
FORMAT_HIGH, CORRECT_LOW = 0.9, 0.1
REWARDED = 0.5  # of the highest reward among the answers
ANSWERS_SHOWN = 5

# off_policy
AGE_POINTS = 4  # steps, at least
CLIPPED_POINTS = 5
