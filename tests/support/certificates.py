"""Certificate authorities of one's own, made with `openssl`: for servers that tests speak TLS with."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Authority", "Identity"]

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


@dataclass(frozen=True)
class Identity:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates that whoever trusts its own certificate believes.

    Args:
        directory: Existing; the files go there, readable by everyone, since servers of the tests run as another user.
        name: Of the authority.
        program: The path of `openssl`.
    """

    def __init__(self, directory: Path, name: str, program: str) -> None:
        self._directory = directory
        self._program = program
        self._own = self._files(name)
        self._openssl("req", "-x509", *_KEY, "-keyout", self._own.key, "-out", self._own.certificate,
                      "-subj", f"/CN={name}", "-days", "2")  # fmt: skip

    @property
    def certificate(self) -> Path:
        """What a client must trust."""
        return self._own.certificate

    def issue(self, name: str, *, hosts: str = "IP:127.0.0.1,DNS:localhost", days: int = 2) -> Identity:
        """Issue a certificate.

        Args:
            name: Its subject, and of its files.
            hosts: What it is for: `subjectAltName` in the notation of openssl.
            days: How long it is valid; -1: until yesterday.
        """
        made = self._files(name)
        request, extensions = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={hosts}\nbasicConstraints=critical,CA:FALSE\n")
        self._openssl("req", *_KEY, "-keyout", made.key, "-out", request, "-subj", f"/CN={name}")
        self._openssl("x509", "-req", "-in", request, "-CA", self._own.certificate, "-CAkey", self._own.key,
                      "-CAcreateserial", "-days", str(days), "-extfile", extensions,
                      "-out", made.certificate)  # fmt: skip
        made.key.chmod(0o644)
        return made

    def revoke(self, *revoked: Identity) -> Path:
        """Return a PEM file that lists what this authority does not stand by any more."""
        kept = Path(tempfile.mkdtemp(prefix="revoked-", dir=self._directory))
        kept.chmod(0o755)
        (kept / "index").touch()
        configuration, listed = kept / "openssl.cnf", kept / "crl.pem"
        configuration.write_text(
            f"[ca]\ndefault_ca=own\n[own]\ndatabase={kept}/index\ndefault_md=sha256\ndefault_crl_days=2\n"
        )
        ca = ["ca", "-config", configuration, "-cert", self._own.certificate, "-keyfile", self._own.key]
        for identity in revoked:
            self._openssl(*ca, "-revoke", identity.certificate)
        self._openssl(*ca, "-gencrl", "-out", listed)
        return listed

    def lock(self, identity: Identity, password: str) -> Identity:
        """Return the same certificate with its key under a password."""
        locked = identity.key.with_suffix(".locked")
        self._openssl("pkey", "-aes256", "-in", identity.key, "-out", locked, "-passout", f"pass:{password}")
        locked.chmod(0o600)  # libpq refuses a key that others may read
        return Identity(identity.certificate, locked)

    def _files(self, name: str) -> Identity:
        return Identity(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    def _openssl(self, *arguments: object) -> None:
        done = subprocess.run(
            [self._program, *map(str, arguments)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"openssl: {done.stderr}"
