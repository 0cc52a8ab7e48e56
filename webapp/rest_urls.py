"""The paths of the REST API, its schema and its documentation."""

from django.urls import path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from webapp.accounts import rest as accounts
from webapp.accounts import schema as _schema  # noqa: F401 - registers how keys are described
from webapp.accounts import webhook_rest as webhooks
from webapp.checkpoints import export_rest as exports
from webapp.checkpoints import rest as checkpoints
from webapp.checkpoints import retention_rest as retention
from webapp.checkpoints import storage_rest as storage
from webapp.datasets import derive_rest
from webapp.datasets import rest as datasets
from webapp.deployments import call_rest as calls
from webapp.deployments import generation_rest as generations
from webapp.deployments import rest as deployments
from webapp.evals import alias_rest as aliases
from webapp.evals import compare_rest as comparisons
from webapp.evals import rest as evals
from webapp.fleet import rest as fleet
from webapp.lineage import rest as lineage
from webapp.runs import annotation_rest as annotations
from webapp.runs import finding_rest as findings
from webapp.runs import group_rest as groups
from webapp.runs import rest as runs
from webapp.runs import rlhf_rest as rlhf
from webapp.runs import rollout_rest as rollouts
from webapp.runs import row_loss_rest as row_losses
from webapp.runs import steering_rest as steering
from webapp.runs import wait_rest as waits
from webapp.tinker import rest as tinker

urlpatterns = [
    path("schema", SpectacularAPIView.as_view(), name="rest-schema"),
    path("", SpectacularSwaggerView.as_view(url_name="rest-schema"), name="rest-docs"),
    path("me", accounts.Me.as_view()),
    path("shares", accounts.ShareList.as_view()),
    path("shares/<str:project_id>", accounts.ShareDetail.as_view()),
    path("members", accounts.MemberList.as_view()),
    path("keys", accounts.KeyList.as_view()),
    path("keys/<str:key_id>", accounts.KeyDetail.as_view()),
    path("webhooks", webhooks.WebhookList.as_view()),
    path("webhooks/<str:webhook_id>", webhooks.WebhookDetail.as_view()),
    path("webhooks/<str:webhook_id>/test", webhooks.WebhookTest.as_view()),
    path("webhooks/<str:webhook_id>/deliveries", webhooks.WebhookDeliveries.as_view()),
    path("base-models", fleet.BaseModelList.as_view()),
    path("base-models/<path:name>", fleet.BaseModelDetail.as_view()),
    path("workers", fleet.WorkerList.as_view()),
    path("isolation-tests", fleet.IsolationTestList.as_view()),
    path("isolation-tests/<str:test_id>", fleet.IsolationTestDetail.as_view()),
    path("conformance", tinker.Conformance.as_view()),
    # /rest/dataset-versions/<str:id>
    path("dataset-versions", datasets.VersionList.as_view()),
    path("dataset-versions/import", derive_rest.VersionImport.as_view()),
    path("dataset-versions/<str:version_id>", datasets.VersionDetail.as_view()),
    path("dataset-versions/<str:version_id>/decision", datasets.VersionDecision.as_view()),
    path("dataset-versions/<str:version_id>/preview", datasets.VersionPreview.as_view()),
    path("dataset-versions/<str:version_id>/derived", derive_rest.VersionDerived.as_view()),
    path("dataset-versions/<str:version_id>/analyses", derive_rest.VersionAnalyses.as_view()),
    path("dataset-versions/<str:version_id>/rows.<str:ending>", derive_rest.VersionRows.as_view()),
    # /rest/runs/<str:id>
    path("runs", runs.RunList.as_view()),
    path("runs/forecast", runs.RunForecast.as_view()),
    path("runs/waiting", waits.WaitingRuns.as_view()),
    path("runs/<str:run_id>", runs.RunDetail.as_view()),
    path("runs/<str:run_id>/wait", waits.RunWait.as_view()),
    path("runs/<str:run_id>/metrics", runs.RunMetrics.as_view()),
    path("runs/<str:run_id>/samples", runs.RunSamples.as_view()),
    path("runs/<str:run_id>/rollouts", rollouts.RunRollouts.as_view()),
    path("runs/<str:run_id>/log", runs.RunLog.as_view()),
    path("runs/<str:run_id>/row-losses", row_losses.RunRowLosses.as_view()),
    path("diagnostics/thresholds", findings.Thresholds.as_view()),
    path("runs/<str:run_id>/findings", findings.RunFindings.as_view()),
    path("runs/<str:run_id>/findings/<slug:key>/dismissal", findings.FindingDismissal.as_view()),
    path("runs/<str:run_id>/annotations", annotations.RunAnnotations.as_view()),
    path("runs/<str:run_id>/pause", runs.RunPause.as_view()),
    path("runs/<str:run_id>/resume", runs.RunResume.as_view()),
    path("runs/<str:run_id>/stop", runs.RunStop.as_view()),
    path("runs/<str:run_id>/save", runs.RunSave.as_view()),
    path("runs/<str:run_id>/evaluate", runs.RunEvaluate.as_view()),
    path("runs/<str:run_id>/learning-rate", runs.RunLearningRate.as_view()),
    path("runs/<str:run_id>/kl-coefficient", steering.RunKlCoefficient.as_view()),
    path("runs/<str:run_id>/stop-after-save", steering.RunStopAfterSave.as_view()),
    path("sweeps", groups.SweepList.as_view()),
    path("rlhf", rlhf.RlhfList.as_view()),
    path("run-groups", groups.GroupList.as_view()),
    path("run-groups/<str:group_id>", groups.GroupDetail.as_view()),
    path("run-groups/<str:group_id>/stop", groups.GroupStop.as_view()),
    # /rest/checkpoints/<str:id>
    path("checkpoints", checkpoints.CheckpointList.as_view()),
    path("checkpoints/many", retention.ManyCheckpoints.as_view()),
    path("checkpoints/<str:checkpoint_id>", checkpoints.CheckpointDetail.as_view()),
    path("checkpoints/<str:checkpoint_id>/keep", checkpoints.CheckpointKeep.as_view()),
    path("checkpoints/<str:checkpoint_id>/pin", retention.CheckpointPin.as_view()),
    path("checkpoints/<str:checkpoint_id>/download", checkpoints.CheckpointDownload.as_view()),
    path("checkpoints/<str:checkpoint_id>/exports", exports.ExportList.as_view()),
    path("exports/<str:export_id>", exports.ExportDetail.as_view()),
    path("exports/<str:export_id>/download", exports.ExportDownload.as_view()),
    path("storage", storage.Storage.as_view()),
    path("retention", retention.Retention.as_view()),
    path("retention/plan", retention.RetentionPlan.as_view()),
    path("retention/apply", retention.RetentionApplication.as_view()),
    path("lineage/", lineage.Lineage.as_view()),
    # /rest/generations/<str:id>
    path("generations", generations.GenerationList.as_view()),
    path("generations/<str:generation_id>", generations.GenerationDetail.as_view()),
    path("generations/<str:generation_id>/pairs", generations.PairList.as_view()),
    path("generations/<str:generation_id>/pairs/<int:pair_id>", generations.PairDetail.as_view()),
    # /rest/deployments/<str:id>
    path("deployments", deployments.DeploymentList.as_view()),
    path("deployments/<str:deployment_id>", deployments.DeploymentDetail.as_view()),
    path("deployments/<str:deployment_id>/promote", deployments.DeploymentPromotion.as_view()),
    path("deployments/<str:deployment_id>/rollback", deployments.DeploymentRollback.as_view()),
    path("deployments/<str:deployment_id>/scale", deployments.DeploymentScale.as_view()),
    path("deployments/<str:deployment_id>/changes", deployments.DeploymentHistory.as_view()),
    path("deployments/<str:deployment_id>/replicas", deployments.DeploymentReplicas.as_view()),
    path("replicas", deployments.ReplicaList.as_view()),
    path("calls", calls.CallList.as_view()),
    path("calls/<int:call_id>", calls.CallDetail.as_view()),
    # /rest/suites/<str:id>, /rest/evaluations/<str:id>
    path("suites", evals.SuiteList.as_view()),
    path("suites/lm-eval", evals.TaskSuiteList.as_view()),
    path("suites/<str:suite_id>", evals.SuiteDetail.as_view()),
    path("evals/compare", comparisons.EvaluationsComparison.as_view()),
    path("evaluations", evals.EvaluationList.as_view()),
    path("evaluations/compare", evals.EvaluationComparison.as_view()),
    path("evaluations/<str:evaluation_id>", evals.EvaluationDetail.as_view()),
    path("evaluations/<str:evaluation_id>/results", evals.EvaluationResults.as_view()),
    # /rest/aliases/<str:id or name>
    path("aliases", aliases.AliasList.as_view()),
    path("aliases/<str:alias_id>", aliases.AliasDetail.as_view()),
    path("aliases/<str:alias_id>/moves", aliases.AliasMoves.as_view()),
    path("aliases/<str:alias_id>/rules", aliases.AliasRules.as_view()),
    path("aliases/<str:alias_id>/rollback", aliases.AliasRollback.as_view()),
]
