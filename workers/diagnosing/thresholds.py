"""Every number that decides whether a diagnostic speaks, in one place."""

# sequential_client
PAIRS = 8  # of a forward_backward and its optim_step, at least
PAIRS_KEPT = 32
SHORTEST_PASS = 0.1  # seconds: while a shorter one runs, the next request is still on its way
SEQUENTIAL_SHARE = 0.8  # of the pairs
LOST_SHARE = 0.01  # of the time

# stale_sampler
SAVES_BEHIND = 2  # of save_weights_for_sampler, newer than the one that is sampled
STALE_CALLS = 4

# sampler_trainer_disagree
DIFFERENCE = 0.01  # nats a token: more is no matter of rounding
STALE_DIFFERENCE = 0.1  # of samples that are some steps old, as those of later substeps are
MEASURED = 3  # newest steps that learned from samples; the mean of them counts
LOOKED_BACK = 16  # steps, for those that learned from fresh samples

# zero_signal_groups
ZERO_SHARE = 0.5
ZERO_STEPS = 3  # at least
ZERO_STEPS_KEPT = 8

# checkpoint_will_expire
EXPIRES_HOURS = 24

# non_finite_or_spiking
CALM_STEPS = 10  # before a spike, at least
WINDOW = 20  # steps before one that it is measured against, and how long it is spoken of
LOSS_FACTOR = 2.0
LOSS_NATS = 0.5
LOSS_SPREADS = 10.0  # median absolute deviations above the median
NORM_FACTOR = 20.0
BATCH_SHOWN = 12

# memorising
RISES = 3  # evaluations in a row
RISE_SHARE = 0.02  # above the best, at the last of them

# reward_hacking
ANSWERS = 64  # at least
ANSWERS_KEPT = 512
LENGTH_CORRELATION = 0.6
LENGTH_GROWTH = 1.5  # of the newer half against the older
REPEATED_SHARE = 0.5  # of a text's 4-grams
HACKED_SHARE = 0.2  # of the rewarded answers
UNREADABLE_SHARE = 0.05  # of an answer's characters
FORMAT_HIGH, CORRECT_LOW = 0.9, 0.1
REWARDED = 0.5  # of the highest reward among the answers
ANSWERS_SHOWN = 5

# off_policy
AGE_STEPS = 8.0
AGE_POINTS = 4  # steps, at least
CLIPPED_SHARE = 0.3
CLIPPED_POINTS = 5
