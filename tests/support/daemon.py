"""Runs a real daemon and talks to it as a stranger would: grpcio, with the API learnt by reflection."""

import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import urllib.request

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2  # from googleapis-common-protos
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

BIN = pathlib.Path(os.environ.get("NIBBLE_BIN", "build/release/server/nibble"))


class Client:
    """All services of one daemon; `client.Generate(...)` and so on, requests as keyword arguments."""

    SERVICES = ("GenerationService", "ModelService", "AdminService")

    def __init__(self, address, credentials=None, options=(), like=None):
        """`like`: a client of the same API, whose descriptions need not be asked for again."""
        self.address = address
        self.channel = (grpc.secure_channel(address, credentials, options) if credentials
                        else grpc.insecure_channel(address, options))
        self.database = like.database if like else ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = like.pool if like else descriptor_pool.DescriptorPool(self.database)
        self.methods = like.methods if like else self._describe()
        self.requests = {}
        for name, (path, streams, request, response) in self.methods.items():
            make = self.channel.unary_stream if streams else self.channel.unary_unary
            call = make(path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)
            self.requests[name] = request
            setattr(self, name, self._bind(call, request))
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def _describe(self):
        """{method: (path, whether it streams, request class, response class)}"""
        methods = {}
        for service in self.SERVICES:
            try:
                described = self.pool.FindServiceByName(f"nibble.v1.{service}")
            except KeyError:
                continue  # AdminService lives on its own port
            for method in described.methods:
                methods[method.name] = (f"/{described.full_name}/{method.name}", method.server_streaming,
                                        message_factory.GetMessageClass(method.input_type),
                                        message_factory.GetMessageClass(method.output_type))
        return methods

    @staticmethod
    def _bind(call, request_class):
        def invoke(request=None, *, timeout=60, metadata=None, **fields):
            return call(request if request is not None else request_class(**fields),
                        timeout=timeout, metadata=metadata)
        return invoke

    def raw_generate(self, payload, timeout=20):
        """Generate with bytes that need not be a message."""
        call = self.channel.unary_stream("/nibble.v1.GenerationService/Generate",
                                         request_serializer=bytes, response_deserializer=bytes)
        return call(payload, timeout=timeout)

    def ask(self, **fields):
        """One Generate to its end: Answer."""
        return Answer(self.Generate(**fields))

    def serving(self, service=""):
        return self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status \
            == health_pb2.HealthCheckResponse.SERVING

    def close(self):
        self.channel.close()


class Answer:
    """Everything one stream said, with the invariants of every stream checked."""

    def __init__(self, responses):
        self.started, self.prompt, self.finished = None, [], {}
        self.text, self.ids, self.logprobs, self.times = {}, {}, {}, []
        for response in responses:
            kind = response.WhichOneof("event")
            if kind == "started":
                assert self.started is None and not self.text, "started comes once, and first"
                self.started = response.started
                continue
            assert self.started is not None, f"{kind} before started"
            if kind == "prompt":
                assert not self.text, "prompt comes before the first chunk"
                self.prompt.append(response.prompt)
            elif kind == "chunk":
                chunk = response.chunk
                index = chunk.output_index
                assert index not in self.finished, "a chunk after finished"
                self.times.append(time.monotonic())
                self.text[index] = self.text.get(index, "") + chunk.text
                self.ids.setdefault(index, []).extend(chunk.token_ids)
                self.logprobs.setdefault(index, []).extend(chunk.logprobs)
            elif kind == "finished":
                assert response.finished.output_index not in self.finished
                self.finished[response.finished.output_index] = response.finished

    def reason(self, index=0):
        finished = self.finished[index]
        return finished.DESCRIPTOR.fields_by_name["reason"].enum_type.values_by_number[finished.reason].name


class Daemon:
    def __init__(self, *models, args=(), env=None, grpc_listen="127.0.0.1:0", http_listen="127.0.0.1:0", wait=True):
        self.log = []
        self.address = self.http = self.admin = None
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [str(BIN), "serve", *map(str, models), "--listen", grpc_listen, "--http", http_listen, *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        self._readers = [threading.Thread(target=self._read, args=(pipe,), daemon=True)
                         for pipe in (self.process.stdout, self.process.stderr)]
        for reader in self._readers:
            reader.start()
        if wait:
            self.wait_ready()

    def _read(self, pipe):
        for line in pipe:
            self.log.append(line.rstrip("\n"))
            if match := re.match(r"ready grpc=(\S+)", line):
                self.address = match.group(1)
                if found := re.search(r" http=(\S+)", line):
                    self.http = found.group(1)
                if found := re.search(r" admin=(\S+)", line):
                    self.admin = found.group(1)
                self._ready.set()

    def wait_ready(self, timeout=60):
        deadline = time.monotonic() + timeout
        while not self._ready.wait(0.02):
            if self.process.poll() is not None:
                raise RuntimeError(f"daemon exited {self.process.returncode}:\n" + "\n".join(self.log))
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("daemon not ready:\n" + "\n".join(self.log))

    def client(self, **kwargs):
        return Client(self.address, **kwargs)

    def get(self, path, timeout=10):
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self):
        """{name{labels}: value} of one scrape."""
        status, text = self.get("/metrics")
        assert status == 200
        return {name: float(value) for name, value in
                (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))}

    def metric(self, name, **labels):
        """The sum of the series of `name` whose labels include these."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        return sum(value for series, value in self.metrics().items()
                   if series.split("{")[0] == name
                   and wanted <= set(re.findall(r'\w+="[^"]*"', series)))

    def log_lines(self):
        """What a daemon that has ended wrote but for the ready line, which is no part of the log."""
        for reader in self._readers:
            reader.join(10)
        return [line for line in self.log if not line.startswith("ready ")]

    def log_records(self):
        """The log of a daemon that has ended and was told --log-format json."""
        return [json.loads(line) for line in self.log_lines()]

    def rss(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.M))
        return {"anon": int(fields["RssAnon"]) * 1024, "file": int(fields["RssFile"]) * 1024}

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout=60):
        return self.process.wait(timeout)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def details(error):
    """google.rpc details of a failed call: {"reason", "domain", "fields", "retry"}."""
    found = {"reason": None, "domain": None, "fields": [], "retry": None}
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
                if detail.Is(kind.DESCRIPTOR):
                    message = kind()
                    detail.Unpack(message)
                    if kind is error_details_pb2.ErrorInfo:
                        found["reason"], found["domain"] = message.reason, message.domain
                    elif kind is error_details_pb2.BadRequest:
                        found["fields"] = [violation.field for violation in message.field_violations]
                    else:
                        found["retry"] = message.retry_delay.ToTimedelta().total_seconds()
    return found
