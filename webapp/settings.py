"""Settings, one flat file; a wrong environment variable fails loudly."""

import os
import secrets
from pathlib import Path

import dj_database_url
import django_stubs_ext
import plotly
from django.core.exceptions import ImproperlyConfigured

django_stubs_ext.monkeypatch()  # ModelAdmin[...] and its like exist in types alone

ROOT = Path(__file__).resolve().parent.parent
STATE_VERSION = 1  # of what lies in HONE_HOME; raised when older code could not read it


def read_bool(name: str, default: bool) -> bool:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ImproperlyConfigured(f"{name} is {value!r}; say 0 or 1")
    return value == "1" if value else default


def read_int(name: str, default: int, *, least: int = 0) -> int:
    value = os.environ.get(name, "") or str(default)
    try:
        number = int(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {value!r}; say a whole number") from None
    if number < least:
        raise ImproperlyConfigured(f"{name} is {number}; say {least} or more")
    return number


def read_choice(name: str, *choices: str) -> str:
    """One of these words, the first where nothing is said."""
    value = os.environ.get(name, "") or choices[0]
    if value not in choices:
        raise ImproperlyConfigured(f"{name} is {value!r}; say {' or '.join(choices)}")
    return value


def read_list(name: str, default: list[str]) -> list[str]:
    value = os.environ.get(name, "")
    return [part.strip() for part in value.split(",") if part.strip()] or default


def read_secret_key() -> str:
    """From SECRET_KEY, else from a file that the first start makes and later ones keep."""
    if key := os.environ.get("SECRET_KEY"):
        return key
    path = HONE_HOME / "secret_key"
    if not path.exists():
        part = path.with_name(f".{path.name}.part")  # a full disk leaves no empty key
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        part.replace(path)
    return path.read_text()


HONE_HOME = Path(os.environ.get("HONE_HOME", ROOT / ".hone")).resolve()
# Everybody's rows, weights and sessions: other users of the machine do not look into it.
HONE_HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
PORT = read_int("PORT", 8000)
# What saves leave free on the disk of HONE_HOME, for the database and autosaves.
DISK_RESERVE_BYTES = read_int("HONE_DISK_RESERVE_MIB", 512) * 2**20
DEBUG = read_bool("DEBUG", False)
HTTPS = read_bool("HONE_HTTPS", False)  # behind a proxy that ends TLS
SECRET_KEY = read_secret_key()
ALLOWED_HOSTS = read_list("HONE_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = read_list("HONE_ORIGINS", [])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "channels",
    "django_htmx",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "webapp.core",
    "webapp.accounts",
    "webapp.fleet",
    "webapp.datasets",
    "webapp.runs",
    "webapp.checkpoints",
    "webapp.deployments",
    "webapp.evals",
    "webapp.lineage",
    "webapp.tinker",
    "webapp.firetitan",
    "webapp.openai",
    "workers",  # for its commands: up, model, serving, sampler
]

MIDDLEWARE = [
    "webapp.core.middleware.StorableTextMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "webapp.core.static.StaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "webapp.accounts.middleware.ActorMiddleware",
    "webapp.core.middleware.UserErrorMiddleware",
    "webapp.tinker.middleware.TinkerErrorMiddleware",
    "webapp.firetitan.middleware.FiretitanErrorMiddleware",
    "webapp.core.middleware.ContentPolicyMiddleware",
]

ROOT_URLCONF = "webapp.urls"
ASGI_APPLICATION = "webapp.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "sign-in"
LOGIN_REDIRECT_URL = "overview"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "webapp.accounts.context.shell",
            ],
            "builtins": [
                "webapp.core.templatetags.hone",
                "webapp.core.templatetags.components",
            ],
        },
    }
]

DATABASES = {
    "default": dj_database_url.parse(
        os.environ.get("DATABASE_URL") or f"sqlite:///{HONE_HOME / 'hone.sqlite3'}",
        conn_max_age=600,
        conn_health_checks=True,  # a database that started again costs nobody an error
    )
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Several processes write. IMMEDIATE takes the write lock when a transaction begins, where
    # SQLite waits for it; a lock that is upgraded half-way fails at once instead.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 30,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
        " PRAGMA mmap_size=134217728;",
    }
    # Tests lock as the product does: SQLite in memory refuses at once where a file waits.
    DATABASES["default"]["TEST"] = {"NAME": HONE_HOME / "test.sqlite3"}

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
# Viewers of this process only; hints from other processes arrive by core/subscription.py.
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
CELERY_BROKER_URL = REDIS_URL

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

STATIC_URL = "/static/"
STATIC_ROOT = HONE_HOME / "static"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)
STATICFILES_DIRS = [ROOT / "static", ("plotly", Path(plotly.__file__).parent / "package_data")]
WHITENOISE_USE_FINDERS = DEBUG
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
MEDIA_ROOT = HONE_HOME
FILE_UPLOAD_TEMP_DIR = HONE_HOME / "incoming"  # same disk as the datasets: a rename, no copy
FILE_UPLOAD_TEMP_DIR.mkdir(parents=True, exist_ok=True)
MAX_UPLOAD_BYTES = 2 * 1024**3
# Files below it may be imported by operators, by their path there; empty: none.
HONE_IMPORT_DIR = os.environ.get("HONE_IMPORT_DIR", "")
# Form fields other than files; protobuf bodies of the SDK are read by their own view.
DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024**2

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
if HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SESSION_COOKIE_AGE = 30 * 86_400
# Two installations on one host differ by port alone, and cookies do not see ports.
SESSION_COOKIE_NAME = f"hone_session_{PORT}"
CSRF_COOKIE_NAME = f"hone_csrf_{PORT}"

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["webapp.accounts.authentication.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["webapp.accounts.authentication.HasProject"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_PAGINATION_CLASS": "webapp.core.paging.CreatedCursorPagination",
    "DEFAULT_PARSER_CLASSES": ["webapp.core.parsers.BoundedJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "webapp.core.rest.answer_error",
    "PAGE_SIZE": 50,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Hone",
    "VERSION": "1",
    "DESCRIPTION": "Datasets, runs, checkpoints, deployments and evaluations of this installation.",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PUBLIC": True,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "ENUM_NAME_OVERRIDES": {
        "RunStatus": "webapp.runs.models.Run.Status",
        "GroupKind": "webapp.runs.models.RunGroup.Kind",
        "AnnotationKind": "webapp.runs.records.Annotation.Kind",
        "VersionStatus": "webapp.datasets.models.DatasetVersion.Status",
        "SuiteKind": "webapp.evals.models.EvalSuite.Kind",
        "GenerationStatus": "webapp.datasets.records.Generation.Status",
        "PairState": "webapp.datasets.records.GeneratedPair.State",
        "RowKind": "webapp.datasets.models.DatasetVersion.Kind",
        "AnalysisKind": "webapp.datasets.records.Analysis.Kind",
        "DeploymentStatus": "webapp.deployments.models.Deployment.Status",
        "HotLoadStatus": "webapp.deployments.models.HotLoad.Status",
        "ChangeStatus": "webapp.deployments.models.DeploymentChange.Status",
        "ReplicaStatus": "webapp.deployments.models.Replica.Status",
        "Engine": "webapp.deployments.models.Replica.Engine",
        "CallStatus": "webapp.deployments.models.SamplingCall.Status",
        "SuiteStatus": "webapp.evals.models.EvalSuite.Status",
        "ExportKind": "webapp.checkpoints.models.Export.Kind",
        "ExportStatus": "webapp.checkpoints.models.Export.Status",
        "CheckpointKind": "webapp.checkpoints.models.Checkpoint.Kind",
    },
}

# Serving: `manage.py serving` starts the built-in server, or vLLM for each base model that is
# wanted. One that somebody else starts, under HONE_SAMPLING_URL, needs --enable-scale-out and, so
# that sampled log-probabilities follow the temperature as they do here, --logprobs-mode
# processed_logprobs.
SERVING = read_choice("HONE_SERVING", "built_in", "vllm")
SAMPLING_SERVER_URL = os.environ.get("HONE_SAMPLING_URL", "")
# Built-in servers that run whatever deployments want, and how long one that nobody wants any more
# waits for the next call.
SAMPLING_REPLICAS = read_int("HONE_REPLICAS", 1)
IDLE_SECONDS = read_int("HONE_IDLE_SECONDS", 300)
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
# What one vLLM on a CPU keeps of the prompts it has read; on a GPU it is what the memory leaves.
VLLM_CACHE_MIB = read_int("HONE_VLLM_CACHE_MIB", 1024, least=64)
# Of a GPU's memory: a trainer on the same one has the rest. Which GPUs they take in turn; all that
# are seen where nothing is said.
VLLM_MEMORY_PERCENT = read_int("HONE_VLLM_MEMORY_PERCENT", 40, least=1)
VLLM_DEVICES = read_list("HONE_VLLM_DEVICES", [])
# Base models and whole ones that the built-in server holds at once, as far as memory goes.
SAMPLING_MODELS = read_int("HONE_SAMPLING_MODELS", 2, least=1)
PROBE_TOLERANCE = 1e-3  # nats; fp32 agrees to 1e-4, a wrong adapter is off by far more than this

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {
        "httpx": {"level": "WARNING"},
        "django.request": {"level": "ERROR"},
        # A kick for each operation: received, done, received ...
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
    },
}
