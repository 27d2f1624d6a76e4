# MLflow's own client, for the tests of the registry: JSON lines of steps on stdin, one JSON line of results on stdout.
import json
import sys

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

# The client itself says things on stdout.
answers, sys.stdout = sys.stdout, sys.stderr
client = MlflowClient()


def experiment(name):
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        # Another client has created it meanwhile.
        found = client.get_experiment_by_name(name)
        if not found:
            raise
        return found.experiment_id


def model(name):
    if not client.search_registered_models(filter_string=f"name='{name}'"):
        client.create_registered_model(name)


def register(name, folder, count=1):
    """The folder as artifact of one run, registered as versions of the model, as people have done it for years."""
    model(name)
    run = client.create_run(experiment("weir-tests"))
    client.log_artifacts(run.info.run_id, folder, "model")
    client.set_terminated(run.info.run_id)
    source = f"{run.info.artifact_uri}/model"
    return [client.create_model_version(name, source, run.info.run_id).version for _ in range(count)]


def register_run(name, folder):
    """The same with a source that names the run, and not where its artifacts lie."""
    model(name)
    run = client.create_run(experiment("weir-tests"))
    client.log_artifacts(run.info.run_id, folder, "a/model")
    client.set_terminated(run.info.run_id)
    return [client.create_model_version(name, f"runs:/{run.info.run_id}/a/model", run.info.run_id).version]


def register_logged(name, folder):
    """The folder as a logged model, which MLflow 3 registers by its id."""
    model(name)
    logged = client.create_logged_model(experiment("weir-tests"), name="model")
    client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, "READY")
    source = f"models:/{logged.model_id}"
    return [client.create_model_version(name, source, model_id=logged.model_id).version]


def alias(name, alias, version):
    client.set_registered_model_alias(name, alias, version)


def tag(name, version, key, value):
    client.set_model_version_tag(name, version, key, value)


def tags(name, version):
    return client.get_model_version(name, version).tags


def runs(name):
    found = client.search_runs([experiment(name)])
    return [
        {"name": run.info.run_name, "status": run.info.status, "metrics": run.data.metrics, "params": run.data.params,
         "tags": run.data.tags, "begin": run.info.start_time, "end": run.info.end_time}
        for run in found
    ]  # fmt: skip


STEPS = {step.__name__: step for step in (register, register_run, register_logged, alias, tag, tags, runs)}
for line in sys.stdin:
    step = json.loads(line)
    print(json.dumps(STEPS[step.pop("step")](**step)), file=answers, flush=True)
