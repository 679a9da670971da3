"""Runs Debian's Prometheus over daemons, with rules whose durations were shortened, and asks it."""

import json
import pathlib
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

from ports import free_port

PROGRAMS = ("prometheus", "promtool", "amtool")
MISSING = [program for program in PROGRAMS if not shutil.which(program)]
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def shorter(duration, factor):
    return f"{int(duration[:-1]) * SECONDS[duration[-1]] * 1000 // factor}ms"


def shorten(rules, factor):
    """The same rules with every `[RANGE]` and every `for:` a factor shorter; nothing else differs."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\[(\d+[smhd])\]", lambda found: f"[{shorter(found[1], factor)}]", rule["expr"])
            if "for" in rule:
                rule["for"] = shorter(rule["for"], factor)
    return rules


class Prometheus:
    """`targets`: {instance: (HOST:PORT, further labels)}, all of job nibble; `rules`: {file name: rules}."""

    def __init__(self, directory, targets, rules, interval):
        directory = pathlib.Path(directory)
        for name, content in rules.items():
            (directory / name).write_text(yaml.safe_dump(content))
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(directory / name) for name in rules],
            "scrape_configs": [{"job_name": "nibble", "static_configs": [
                {"targets": [address], "labels": {"instance": instance, **labels}}
                for instance, (address, labels) in targets.items()]}]}
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        subprocess.run(["promtool", "check", "config", str(directory / "prometheus.yml")], check=True, capture_output=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = open(directory / "prometheus.log", "w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
             f"--web.listen-address={self.url[7:]}", "--log.level=warn"], stdout=self.log, stderr=self.log)

    def _get(self, path, **parameters):
        try:
            with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from None

    def query(self, expression):
        """The samples of an instant query: [(labels, value)]."""
        answer = self._get("/api/v1/query", query=expression)
        if answer["resultType"] == "scalar":
            return [({}, float(answer["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["result"]]

    def alerts(self, name, **labels):
        """The firing alerts of a name whose labels include these."""
        return [alert for alert in self._get("/api/v1/alerts")["alerts"]
                if alert["state"] == "firing" and {"alertname": name, **labels}.items() <= alert["labels"].items()]

    def rules(self):
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def wait(self, what, condition, timeout=40):
        deadline = time.monotonic() + timeout
        while not (found := self._try(condition)):
            if time.monotonic() > deadline:
                firing = self._try(lambda: [alert["labels"] for alert in self._get("/api/v1/alerts")["alerts"]])
                raise AssertionError(f"waited {timeout} s for {what}; alerts are {firing}")
            time.sleep(0.1)
        return found

    def _try(self, condition):
        try:
            return condition()
        except (OSError, urllib.error.URLError):
            return None  # it has just been started

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
