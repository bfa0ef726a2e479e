"""Checks the files for orchestrators: packaging.py MANIFEST JOB

MANIFEST is checked against the schema of Kubernetes by kubernetes-validate, JOB is read by python-hcl2, and the times of both
must fit: what the orchestrator gives is more than what master-process takes.
"""

import re
import sys

import hcl2
import kubernetes_validate
import yaml

# Killing what is left takes a second, and a busy host some more.
REST = 5


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def kill_timeout(arguments):
    (given,) = [word for word in arguments if word.startswith("--kill-timeout=")]
    return seconds(given.split("=")[1])


def fits(what, given, taken):
    if given < taken:
        sys.exit(f"{what}: {given} s is less than the {taken} s that a stop takes")
    print(f"{what}: {given} s for a stop of {taken} s")


def kubernetes(path):
    with open(path, encoding="utf-8") as file:
        manifest = yaml.safe_load(file)
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(manifest, version, strict=True)
    print(f"{path}: valid for Kubernetes {version}")
    spec = manifest["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    if f"--metrics={ports['metrics']}" not in container["args"]:
        sys.exit(f"{path}: the port of the metrics is not that of --metrics")
    for probe, wanted in [("livenessProbe", "/healthz"), ("startupProbe", "/healthz"), ("readinessProbe", "/readyz")]:
        if container[probe]["httpGet"] != {"path": wanted, "port": "metrics"}:
            sys.exit(f"{path}: {probe} does not ask {wanted} at the port of the metrics")
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    taken = before + kill_timeout(container["args"]) + REST
    fits(path, spec["terminationGracePeriodSeconds"], taken)


def plain(value):
    """A string without the quotes that some versions of the parser leave."""
    return value.strip('"') if isinstance(value, str) else value


def body(blocks, kind, label):
    """The body of the only block of this kind."""
    (found,) = blocks[kind]
    if label is None:
        return found
    ((name, inside),) = [(key, value) for key, value in found.items() if not key.startswith("__")]
    if plain(name) != label:
        sys.exit(f"{kind} {name}: expected {label}")
    return inside


def nomad(path):
    with open(path, encoding="utf-8") as file:
        job = body(hcl2.load(file), "job", "app")
    group = body(job, "group", "app")
    task = body(group, "task", "app")
    check = body(body(group, "service", None), "check", None)
    if plain(check["path"]) != "/readyz" or plain(check["port"]) != "metrics":
        sys.exit(f"{path}: the check does not ask /readyz at the port of the metrics")
    arguments = [plain(word) for word in body(task, "config", None)["args"]]
    print(f"{path}: read")
    fits(path, seconds(plain(task["kill_timeout"])), kill_timeout(arguments) + REST)


kubernetes(sys.argv[1])
nomad(sys.argv[2])
