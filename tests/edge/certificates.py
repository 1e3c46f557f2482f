"""Certificate authorities, and what they sign, for as long as a test needs them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, PEM; its common name is what a broker takes as the user's."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates in a folder of its own. Skips the test where openssl is not installed."""

    def __init__(self, openssl: Path, folder: Path, name: str = "ca") -> None:
        self._openssl, self._folder, self._name = openssl, folder, name
        self.pem = folder / f"{name}.pem"
        self._run("req", "-x509", *_CURVE, "-nodes", "-days", "2", "-subj", f"/CN={name}",
                  "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip

    def identity(
        self, name: str, *, address: str = "127.0.0.1", days: int = 2, passphrase: str | None = None
    ) -> Identity:
        """A certificate for this name; `days` 0 has expired when it is used."""
        protection = ("-nodes",) if passphrase is None else ("-passout", f"pass:{passphrase}")
        (self._folder / "names").write_text(f"subjectAltName=IP:{address}\n", encoding="ascii")
        self._run("req", "-new", *_CURVE, *protection, "-subj", f"/CN={name}",
                  "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{self._name}.pem", "-CAkey", f"{self._name}.key",
                  "-CAcreateserial", "-days", str(days), "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip
        return Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._openssl, *arguments], cwd=self._folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.fail(f"openssl {arguments[0]}: {done.stderr}", pytrace=False)
