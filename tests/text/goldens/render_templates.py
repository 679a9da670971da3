#!/usr/bin/env python3
"""Renders chat templates with Jinja2 as Hugging Face's tokenizers do, and records what comes out.

    python3 -m venv venv && venv/bin/pip install jinja2==3.1.6
    venv/bin/python render_templates.py snippets snippets.json
    venv/bin/python render_templates.py folder templates -o templates.json
    venv/bin/python render_templates.py folder DIR_OF_OTHER_TEMPLATES --hashes -o conformance_templates.json

`snippets` fills in "output" or "error" of each {"template"} in place, rendered with the file's "variables". `folder` renders every *.jinja of
a folder over conversations.json: {file: {"bytes", "renderings": {conversation: {"output" | "error"}}}}. With
--hashes, which is for templates of others, "fnv1a" stands for "output" and errors are not quoted.
"""
import argparse
import copy
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

# What strftime_now sees; the C++ test renders at the same local time.
NOW = datetime.datetime(2025, 3, 9, 14, 5, 7, 123)


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks the assistant's text for training and prints it unchanged."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment():
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(source, variables):
    variables = copy.deepcopy(variables)  # some filters change lists in place (indent does)
    try:
        return {"output": environment().from_string(source).render(**variables)}
    except Exception as error:  # whatever a template can do wrong
        return {"error": str(error) or type(error).__name__}


def render_snippets(path):
    goldens = json.loads(path.read_text())
    lines = []
    for snippet in goldens["snippets"]:
        row = {"template": snippet["template"]}
        row.update(render(row["template"], goldens["variables"]))
        lines.append(json.dumps(row, ensure_ascii=False))
    variables = json.dumps(goldens["variables"], ensure_ascii=False)
    path.write_text('{"variables": ' + variables + ',\n"snippets": [\n' + ",\n".join(lines) + "\n]}\n")


def fnv1a(text):
    """64-bit FNV-1a of the text's UTF-8, in hexadecimal."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def hashed(rendering):
    return {"fnv1a": fnv1a(rendering["output"])} if "output" in rendering else {"error": ""}


def render_folder(folder, out, hashes):
    conversations = json.loads((pathlib.Path(__file__).parent / "conversations.json").read_text())
    goldens = {}
    for path in sorted(folder.glob("*.jinja")):
        with path.open(newline="") as file:  # newlines as they are
            source = file.read()
        renderings = {name: render(source, variables) for name, variables in conversations.items()}
        if hashes:
            renderings = {name: hashed(rendering) for name, rendering in renderings.items()}
        goldens[path.name] = {"bytes": len(source.encode()), "renderings": renderings}
    out.write_text(json.dumps(goldens, ensure_ascii=False, indent=0) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["snippets", "folder"])
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("-o", "--out", type=pathlib.Path)
    parser.add_argument("--hashes", action="store_true")
    arguments = parser.parse_args()
    if arguments.mode == "snippets":
        render_snippets(arguments.path)
    else:
        render_folder(arguments.path, arguments.out, arguments.hashes)


if __name__ == "__main__":
    main()
