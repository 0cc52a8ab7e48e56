"""What pages and programs ask about serving."""

from webapp.checkpoints.models import Checkpoint
from webapp.deployments.models import Deployment, HotLoad, Replica


def find_proof(checkpoint: Checkpoint) -> HotLoad | None:
    """The newest load that serves this checkpoint now. None: nothing does."""
    return checkpoint.hot_loads.filter(status=HotLoad.Status.READY).first()


def find_last_load(deployment: Deployment) -> HotLoad | None:
    """The load that a deployment's page shows, with its proof, or with why it failed."""
    if deployment.checkpoint is None:
        return None
    return find_proof(deployment.checkpoint) or deployment.checkpoint.hot_loads.first()


ENGINES = {
    Replica.Engine.BUILT_IN: "built-in generator",
    Replica.Engine.VLLM: "vLLM",
    Replica.Engine.EXTERNAL: "external server",
}


def name_engine(replica: Replica) -> str:
    """`vLLM 0.32.0`"""
    return f"{ENGINES[Replica.Engine(replica.engine)]} {replica.version}".strip()
