"""What a custom loss may call: every function and method by name, and how large its result can be.

A rule's name says how its result is bounded from its arguments: `training.engine.sizes` has one
function for each. What is not listed here is refused when the loss is created.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT", "real"})
PAIR_ATTRIBUTES = frozenset({"values", "indices"})  # of what max, sort or topk return
DTYPES = words("float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool")
# Names of keyword arguments that choose nothing dangerous: `out`, `generator` and the like are not
# among them. The tracer writes those of DEFAULTS out even where nobody gave them.
KEYWORDS = words(
    """alpha append approximate atol axis0 axis1 beta chunks condition correction decimals delta
    descending destination diagonal dim dim0 dim1 dims dtype end end_dim eps equal_nan equation
    exponent fill_value full ignore_index index indexing indices indices_or_sections input
    interpolation k keepdim label_smoothing lambd largest length log_input log_target m margin mask
    max max_val min min_val mode n nan neginf negative_slope num_classes offset ord other p pad
    pos_weight posinf prepend q reduction repeats rounding_mode rtol sections self shape shifts size
    sizes sorted source split_size split_size_or_sections src stable start start_dim step steps
    target tensor tensor1 tensor2 tensors threshold unbiased upper value values var weight"""
)
DEFAULTS = words("generator inplace out pin_memory reduce requires_grad size_average")
IGNORED = frozenset({"_stacklevel", "copy", "device", "layout", "memory_format", "non_blocking"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """`most_args`: as many positional arguments, where one after them would change a tensor."""

    rule: str
    most_args: int | None = None


# Both `torch.<name>(x)` and `x.<name>()`. "inside": no more than what comes in, twice.
BOTH: Mapping[str, str] = {
    "inside": """abs absolute acos acosh all amax amin aminmax any arccos arccosh arcsin arcsinh
    arctan arctanh argmax argmin asin asinh atan atanh bitwise_not ceil clone cos cosh
    count_nonzero cumsum deg2rad detach diagonal erf erfc exp exp2 expm1 fix flatten flip fliplr
    flipud floor frac gather index_add index_fill isfinite isinf isnan isneginf isposinf log log10
    log1p log2 log_softmax logical_not logit logsumexp mean median moveaxis movedim nan_to_num
    nanmean nanmedian nansum narrow neg negative permute positive prod rad2deg ravel reciprocal
    relu reshape roll rot90 round rsqrt scatter scatter_add select sgn sigmoid sign signbit sin
    sinc sinh softmax sqrt square squeeze std sum swapaxes swapdims t tan tanh trace transpose tril
    triu trunc unflatten unsqueeze""",
    "slow": "i0 cummax cummin cumprod digamma erfinv lgamma",
    "sorting": "argsort kthvalue logcumsumexp msort sort topk",
    "broadcast": """add addcdiv addcmul arctan2 atan2 bitwise_and bitwise_or bitwise_xor clamp
    clamp_max clamp_min clip copysign dist eq fmax fmin ge greater greater_equal gt heaviside hypot
    isclose ldexp le lerp less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor
    lt masked_fill masked_select max maximum min minimum mul multiply ne nextafter not_equal sub
    subtract true_divide where xlogy""",
    "power": "float_power pow",
    "division": "div divide floor_divide fmod remainder",
    "matmul": "bmm dot matmul mm mv",
    "number": "numel",
    "outer": "outer",
    "nonzero": "nonzero",
    "diff": "diff",
    "diag": "diag",
    "tile": "tile",
    "broadcast_to": "broadcast_to",
    "index_select": "index_select",
    "take": "take",
    "take_along_dim": "take_along_dim",
    "quantile": "nanquantile quantile",
    "repeat_interleave": "repeat_interleave",
    "chunk": "chunk tensor_split",
    "unbind": "unbind",
}
ONLY_METHODS: Mapping[str, str] = {
    "inside": """bfloat16 bool byte char contiguous cpu cuda double float half int long reshape_as
    short to type_as var view_as""",
    "number": "dim ndimension nelement size",
    "view": "view",
    "expand": "expand",
    "expand_as": "expand_as",
    "tile": "repeat",
    "create_like": "new_ones new_zeros",
    "fill_like": "new_full",
    "norm": "norm",
    "split": "split",
}
# By where the tracer finds them, which is not always where people do.
ONLY_FUNCTIONS: Mapping[str, Mapping[str, str]] = {
    "torch.": {
        "inside": """cat column_stack concat concatenate dstack full_like hardshrink hstack
        ones_like real selu stack std_mean threshold var var_mean vstack zeros_like""",
        "broadcast": "cosine_similarity rsub",
        "create": "ones zeros",
        "fill": "full",
        "arange": "arange",
        "linspace": "linspace",
        "eye": "eye",
    },
    "torch.functional.": {
        "inside": "atleast_1d atleast_2d atleast_3d",
        "tensors": "broadcast_tensors",
        "meshgrid": "meshgrid",
        "einsum": "einsum",
        "norm": "norm",
        "split": "split",
    },
    "torch._C._linalg.": {"inside": "linalg_vector_norm", "norm": "linalg_norm"},
    "torch._C._nn.": {"inside": "gelu log_sigmoid softplus softshrink", "one_hot": "one_hot"},
    "torch._C._special.special_": {
        "inside": """entr erf erfc exp2 expit expm1 log1p log_softmax logit logsumexp ndtr round
        sinc softmax""",
        "slow": "i0 i0e i1 i1e digamma erfcx erfinv gammaln log_ndtr ndtri psi",
        "broadcast": "xlog1py xlogy",
    },
    "torch.nn.functional.": {
        "inside": """cross_entropy glu log_softmax nll_loss normalize sigmoid softmax softmin
        softsign tanh tanhshrink""",
        "broadcast": """binary_cross_entropy binary_cross_entropy_with_logits gaussian_nll_loss
        hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss
        poisson_nll_loss smooth_l1_loss soft_margin_loss""",
        "pad": "pad",
    },
    "operator.": {
        "getitem": "getitem",
        "sum": "add",
        "arithmetic": "abs and_ eq ge gt inv invert le lt mul ne neg or_ pos sub truediv xor",
        "quotient": "floordiv mod",
        "exponent": "pow",
        "matmul": "matmul",
    },
    "math.": {
        "math": """acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh degrees erf
        erfc exp exp2 expm1 fabs floor fmod gamma gcd hypot isclose isfinite isinf isnan isqrt
        lgamma log log10 log1p log2 pow prod radians remainder sin sinh sqrt tan tanh trunc""",
    },
    "": {"getattr": "getattr"},
}
# Their next positional argument is `inplace`; the tracer gives everything else by name.
MAYBE_IN_PLACE = """celu elu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6
selu silu"""

_RANDOM = words(
    """alpha_dropout bernoulli bernoulli_ binomial dropout dropout1d dropout2d dropout3d
    exponential_ feature_alpha_dropout gumbel_softmax manual_seed multinomial normal normal_ poisson
    rand rand_like randint randint_like randn randn_like random_ randperm rrelu uniform_"""
)
_UNWRITTEN = words("empty empty_like empty_permuted empty_strided new_empty")
_LEAVES_TORCH = words("item numpy tolist data_ptr __array__ __dlpack__")
_REASONS = (
    (_RANDOM, "it draws random numbers, and a loss has to give the same when it is run again"),
    (_UNWRITTEN, "it gives memory that nothing was written to; use zeros"),
    (_LEAVES_TORCH, "it leaves torch; keep every value a tensor"),
    ({"backward"}, "return the loss, and its gradient is taken here"),
)


def _list(rules: Mapping[str, str], prefix: str = "") -> Iterable[tuple[str, Op]]:
    for rule, names in rules.items():
        yield from ((prefix + name, Op(rule=rule)) for name in names.split())


FUNCTIONS: Mapping[str, Op] = {
    **dict(_list(BOTH, "torch.")),
    **{name: op for prefix, rules in ONLY_FUNCTIONS.items() for name, op in _list(rules, prefix)},
    **{
        f"torch.nn.functional.{name}": Op(rule="inside", most_args=1)
        for name in MAYBE_IN_PLACE.split()
    },
    "torch.nn.functional._threshold": Op(rule="inside", most_args=3),
}
METHODS: Mapping[str, Op] = {**dict(_list(BOTH)), **dict(_list(ONLY_METHODS))}


def explain(target: str) -> str:
    """Why a target is refused, where there is more to say than that it is not listed."""
    name = target.rpartition(".")[2]
    for names, why in _REASONS:
        if name in names:
            return f": {why}"
    if name.endswith("_") and name[:-1] in METHODS:
        return f": it changes a tensor in place; use {name[:-1]}"
    return ""
