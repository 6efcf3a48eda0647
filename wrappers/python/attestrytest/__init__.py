"""Starts a throwaway Sigstore for a test: the attestry program, run and ended.

    with attestrytest.start() as sigstore:
        token = sigstore.token("alice@example.com")
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
from typing import Any, Optional, Sequence

__all__ = ["Sigstore", "start"]

START_SECONDS = 30.0
STOP_SECONDS = 15.0

_READY = re.compile(r"^attestry is ready at (\S+) ")
_DATA = re.compile(r"^  data +(.+) \(removed at the end\)$")
_EXPORT = re.compile(r"^export (\w+)=(.*)$")


def start(binary: Optional[str] = None, args: Sequence[str] = ()) -> "Sigstore":
    """Start an instance and return when all of it answers.

    binary is the attestry program; by default ATTESTRY_BIN, else attestry on the path. args are further flags of `attestry up`.
    The instance ends with stop(), with the block of a `with`, and with this process, however that ends.
    """
    return Sigstore(binary or os.environ.get("ATTESTRY_BIN") or "attestry", args)


class Sigstore:
    """An instance that runs.

    url is that of everything, tuf_url the TUF repository's, issuer_url the identity provider's; dir is removed at the end; env is
    what clients find the instance by: ATTESTRY_URL, TUF_MIRROR, TUF_ROOT_JSON and others.
    """

    def __init__(self, binary: str, args: Sequence[str]) -> None:
        self._binary = binary
        self._errors = tempfile.TemporaryFile()
        command = [binary, "up", "--ephemeral", "--until-eof", "--listen", "127.0.0.1:0", *args]
        # The program stops when its standard input ends, which a killed parent cannot prevent.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )
        timer = threading.Timer(START_SECONDS, self._process.kill)
        timer.start()
        try:
            self.url, directory = self._begin()
            self.dir = pathlib.Path(directory)
            self.tuf_url = self.url + "/tuf"
            self.issuer_url = self.url + "/oidc"
            self.env = _read_env(self.file("env"))
        except BaseException:
            self._process.kill()
            self.stop()
            raise
        finally:
            timer.cancel()

    def _begin(self) -> tuple[str, str]:
        url = None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            ready = _READY.match(line)
            if ready:
                url = ready.group(1)
            data = _DATA.match(line.rstrip("\n"))
            if url and data:
                return url, data.group(1)
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        raise RuntimeError(f"attestry ended with {status} before it was ready: {said}")

    def file(self, name: str) -> pathlib.Path:
        """Return the path of a file for clients, such as trusted_root.json or client_trust_config.json."""
        return self.dir / "client" / name

    def token(self, email: str, claims: Optional[dict[str, Any]] = None) -> str:
        """Return an identity token, good for ten minutes. claims are added last and replace any; None takes one away."""
        command = [self._binary, "token", "--dir", str(self.dir), "--email", email]
        for name, value in (claims or {}).items():
            command += ["--claim", f"{name}={json.dumps(value)}"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return done.stdout.strip()

    def stop(self) -> None:
        """End the instance; its directory is removed."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it ended first
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Sigstore":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _read_env(path: pathlib.Path) -> dict[str, str]:
    env = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found = _EXPORT.match(line)
        if found:
            env[found.group(1)] = found.group(2).strip("'")
    return env
