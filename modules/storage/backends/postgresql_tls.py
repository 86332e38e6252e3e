"""TLS to PostgreSQL: what the driver is told, the same for asyncpg and for libpq (the engine of users' own code)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Dict, Literal, Optional, Union

from modules.store_common.errors import UnavailableError

__all__ = ["TLSOptions"]


@dataclass(frozen=True)
class TLSOptions:
    """How a connection is protected, and whom it believes.

    Attributes:
        mode: disable, prefer, require, verify-ca or verify-full (as libpq's sslmode). As in libpq, `require` with an
            authority of one's own checks the certificate, but not the host name.
        ca_file: PEM file of trusted authorities; None: the system's. `system` means that, too, as in libpq.
        cert_file: PEM file of the client's own certificate, for servers that ask for one; None: none.
        key_file: PEM file of its key; None: the key is in `cert_file`.
        key_password: Of the key; never shown.
        crl_file: PEM file of revoked certificates; None: none are.

    Source:
        PostgreSQL documentation, "SSL Support" of libpq, table "SSL Mode Descriptions".
    """

    mode: str = "prefer"
    ca_file: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    key_password: Optional[str] = field(default=None, repr=False)
    crl_file: Optional[str] = None

    @property
    def verifies(self) -> bool:
        """Whether the server's certificate is checked."""
        return self.mode.startswith("verify") or (self.mode == "require" and self._own_ca is not None)

    @property
    def _own_ca(self) -> Optional[str]:
        return None if self.ca_file == "system" else self.ca_file

    def for_asyncpg(self) -> Union[Literal["disable", "prefer", "require"], ssl.SSLContext]:
        """Return the argument `ssl` of `asyncpg.connect`, which reads the rest from the URL when nothing is verified.

        Raises:
            UnavailableError: one of the files cannot be read.
        """
        if self.mode == "disable":
            return "disable"
        if not self.verifies:
            # asyncpg reads the client's files again, but does not name them when it cannot
            self._present_own(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            return "require" if self.mode == "require" else "prefer"
        try:
            context = ssl.create_default_context(cafile=self._own_ca)
            if self.crl_file is not None:
                context.load_verify_locations(self.crl_file)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        except OSError as exc:
            raise UnavailableError(
                "sql.tls_ca_file (or sslrootcert or sslcrl of the URL) cannot be read as a PEM file of certificates; "
                "check the path"
            ) from exc
        context.check_hostname = self.mode == "verify-full"
        self._present_own(context)
        return context

    def _present_own(self, context: ssl.SSLContext) -> None:
        if self.cert_file is None:
            return
        try:
            context.load_cert_chain(self.cert_file, self.key_file, lambda: self.key_password or "")
        except OSError as exc:
            raise UnavailableError(
                "sslcert or sslkey of the URL cannot be read as PEM files, or the password of the key is wrong"
            ) from exc

    def for_libpq(self) -> Dict[str, str]:
        """Return the connection parameters of libpq; what else the URL says of TLS, libpq reads there itself."""
        found = {"sslmode": self.mode}
        if self._own_ca is not None:
            found["sslrootcert"] = self._own_ca
        elif self.verifies:
            # libpq would look for a file in the home directory; `system` it takes with verify-full only, and a libpq
            # that brings its own OpenSSL may look for it elsewhere than Python does
            found["sslrootcert"] = ssl.get_default_verify_paths().cafile or "system"
        return found
