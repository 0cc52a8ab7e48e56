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
    "inside": """abs absolute acos acosh all amax amin aminmax any arccos arcsin arctan argmax
    argmin asin asinh atan atanh bitwise_not ceil clone cos cosh count_nonzero cummax cummin cumprod
    cumsum deg2rad detach diagonal digamma erf erfc erfinv exp exp2 expm1 fix flatten flip
    fliplr flipud floor frac gather index_add index_fill isfinite isinf isnan isneginf isposinf
    lgamma log log10 log1p log2 log_softmax logcumsumexp logical_not logit logsumexp mean median
    moveaxis movedim nan_to_num nanmean nanmedian nansum narrow neg negative permute positive prod
    rad2deg ravel reciprocal relu reshape roll round rsqrt scatter scatter_add select sgn sigmoid
    sign signbit sin sinc sinh softmax sqrt square squeeze std sum swapaxes swapdims t tan tanh
    transpose tril triu trunc unflatten unsqueeze""",
    "sorting": "argsort kthvalue sort topk",
    "broadcast": """add addcdiv addcmul arctan2 atan2 bitwise_and bitwise_or bitwise_xor clamp
    clamp_max clamp_min clip copysign eq fmax fmin ge greater greater_equal gt heaviside hypot
    isclose ldexp le lerp less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor lt
    masked_fill masked_select max maximum min minimum mul multiply ne nextafter not_equal sub
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
    "inside": """bfloat16 bool byte char contiguous cpu cuda double float half int long
    short to type_as view_as var""",
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
ONLY_FUNCTIONS: Mapping[str, str] = {
    "inside": """torch.cat torch.column_stack torch.concat torch.concatenate torch.full_like
    torch.hardshrink torch.hstack torch.ones_like torch.stack torch.std_mean torch.threshold
    torch.var torch.var_mean torch.vstack torch.zeros_like torch._C._linalg.linalg_vector_norm
    torch._C._nn.gelu torch._C._nn.log_sigmoid torch._C._nn.softplus torch._C._nn.softshrink
    torch._C._special.special_digamma torch._C._special.special_entr torch._C._special.special_erf
    torch._C._special.special_erfc torch._C._special.special_erfcx
    torch._C._special.special_erfinv torch._C._special.special_exp2
    torch._C._special.special_expit torch._C._special.special_expm1
    torch._C._special.special_gammaln torch._C._special.special_log1p
    torch._C._special.special_log_ndtr torch._C._special.special_log_softmax
    torch._C._special.special_logit torch._C._special.special_logsumexp
    torch._C._special.special_ndtr torch._C._special.special_ndtri torch._C._special.special_psi
    torch._C._special.special_round torch._C._special.special_sinc
    torch._C._special.special_softmax torch.nn.functional.cross_entropy torch.nn.functional.glu
    torch.nn.functional.log_softmax torch.nn.functional.nll_loss torch.nn.functional.normalize
    torch.nn.functional.softmax torch.nn.functional.softmin torch.nn.functional.softsign
    torch.nn.functional.tanhshrink""",
    "broadcast": """torch.cosine_similarity torch.rsub torch._C._special.special_xlog1py
    torch._C._special.special_xlogy torch.nn.functional.binary_cross_entropy
    torch.nn.functional.binary_cross_entropy_with_logits torch.nn.functional.gaussian_nll_loss
    torch.nn.functional.hinge_embedding_loss torch.nn.functional.huber_loss
    torch.nn.functional.kl_div torch.nn.functional.l1_loss
    torch.nn.functional.margin_ranking_loss torch.nn.functional.mse_loss
    torch.nn.functional.poisson_nll_loss torch.nn.functional.smooth_l1_loss
    torch.nn.functional.soft_margin_loss""",
    "tensors": "torch.functional.broadcast_tensors",
    "meshgrid": "torch.functional.meshgrid",
    "einsum": "torch.functional.einsum",
    "norm": "torch.functional.norm torch._C._linalg.linalg_norm",
    "split": "torch.functional.split",
    "one_hot": "torch._C._nn.one_hot",
    "pad": "torch.nn.functional.pad",
    "create": "torch.ones torch.zeros",
    "fill": "torch.full",
    "arange": "torch.arange",
    "linspace": "torch.linspace",
    "eye": "torch.eye",
    "getattr": "getattr",
    "getitem": "operator.getitem",
    "sum": "operator.add",
    "arithmetic": """operator.abs operator.and_ operator.eq operator.ge operator.gt operator.inv
    operator.invert operator.le operator.lt operator.mul operator.ne operator.neg operator.or_
    operator.pos operator.sub operator.truediv operator.xor""",
    "quotient": "operator.floordiv operator.mod",
    "exponent": "operator.pow",
    "matmul": "operator.matmul",
    "math": " ".join(
        f"math.{name}"
        for name in words(
            """acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh degrees
        erf erfc exp exp2 expm1 fabs floor fmod gamma gcd hypot isclose isfinite isinf isnan isqrt
        lgamma log log10 log1p log2 pow prod radians remainder sin sinh sqrt tan tanh
        trunc"""
        )
    ),
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
    **dict(_list(ONLY_FUNCTIONS)),
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
